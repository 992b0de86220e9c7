from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import OptimConfig
from unlearn.errors import ConfigError
from unlearn.functional.erasure import quantile_distance
from unlearn.methods.counterfactual import after_name, predicting_all
from unlearn.methods.sae_erase import SAEErase, SAEEraseConfig
from unlearn.methods.sae_guided import SAEGuided
from unlearn.methods.undo import trained_weights
from unlearn.models.capture import capture
from unlearn.models.decoder import head
from unlearn.models.forward import forward
from unlearn.module import UnlearningModule
from unlearn.types import TokenBatch

WEIGHTS = {
    "forget": "forget_weight",
    "output": "output_weight",
    "hidden": "hidden_weight",
    "share": "share_weight",
    "relearned": "meta_weight",
    "virtual": "virtual_weight",
    "patched": "patch_weight",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def step(lm: Any, method: SAEErase, made: Toy, number: int) -> dict[str, float]:
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=1e-3)
    method.before_step(lm, number, 10)
    out = method.loss(lm, made.batch())
    out.total.backward()
    method.adjust_gradients(lm)
    optimizer.step()
    optimizer.zero_grad()
    return {name: value.item() for name, value in out.terms.items()}


def forgotten(lm: Any, method: SAEErase, batch: TokenBatch) -> dict[str, torch.Tensor]:
    aims = method.targets.of(batch, method.step)
    wide = predicting_all(batch, after_name(batch, aims.place_N))
    return method.forgotten(lm, wide, aims, forward(lm, wide, layers=range(4)))


def test_the_total_is_the_weighted_sum_of_the_terms_and_zero_turns_one_off(made: Toy) -> None:
    lm, method = made.ready("sae_erase")
    method.before_step(lm, 0, 10)
    out = method.loss(lm, made.batch())
    c = method.config
    weights = {name: getattr(c, key) for name, key in WEIGHTS.items()}
    weights |= {"retain_kl": c.retain_kl, "retain_hidden": c.retain_hidden, "replay": c.replay_weight}
    assert out.terms.keys() == weights.keys()
    assert out.total.item() == pytest.approx(sum(w * out.terms[name].item() for name, w in weights.items()), rel=1e-5)
    for name, key in WEIGHTS.items():
        if name == "relearned":
            continue
        other_lm, other = made.ready("sae_erase", **{key: 0.0})
        other.before_step(other_lm, 0, 10)
        without = other.loss(other_lm, made.batch())
        assert without.total.item() == pytest.approx(out.total.item() - weights[name] * out.terms[name].item(), rel=1e-4)


def test_without_the_meta_weight_there_is_no_adversary(made: Toy) -> None:
    lm, method = made.ready("sae_erase", meta_weight=0.0)
    assert method.relearner is None
    assert step(lm, method, made, 0)["relearned"] == 0
    assert not method.pressure


def test_a_row_in_which_no_other_name_can_stand_is_neither_aimed_at_nor_asked(made: Toy, tmp_path: Path) -> None:
    rows = made.data.streams["forget"]
    odd = replace(rows[0], prompt="Where was Ann, that is Ann Lee, born?")
    changed = toy(tmp_path, data=replace(made.data, streams={**made.data.streams, "forget": (odd, *rows[1:])}))
    lm, method = changed.ready("sae_erase")
    assert odd.row_id not in method.targets.hidden
    assert odd.row_id not in method.relearner.rows
    assert set(method.relearner.rows) == {row.row_id for row in rows[1:]}
    assert torch.isfinite(torch.tensor(list(step(lm, method, changed, 0).values()))).all()


def test_the_forget_term_is_that_of_sae_guided(made: Toy) -> None:
    """Both read the same activations; here they come out of the one pass that the other terms need as well."""
    lm, method = made.ready("sae_erase", position="entity_end")
    _, plain = made.ready("sae_guided", position="entity_end")
    batch = made.batch()["forget"]
    method.draws.manual_seed(3)
    plain.draws.manual_seed(3)
    found = forgotten(lm, method, batch)["forget"].item()
    assert found == pytest.approx(SAEGuided.forget(plain, lm, batch, "entity_end").item(), rel=1e-5)


def test_terms_of_the_targets_by_hand(made: Toy) -> None:
    lm, method = made.ready("sae_erase")
    method.step = 4
    row = made.datamodule.streams["forget"][0]
    batch = made.reader().batches([row])[0]
    terms = forgotten(lm, method, batch)
    end, n = row.entity_end, len(row.ids)
    with torch.no_grad():
        logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[0, end : n - 1]
        aims = method.targets.of(batch, 4)
        log_p = head(lm, aims.final_PD).log_softmax(-1)
    kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean()
    assert terms["output"].item() == pytest.approx(kl.item(), rel=1e-3)
    hidden = []
    for layer in range(4):
        here, there = capture(lm, batch, layer)[0, end:], aims.hidden_LMD[layer]
        hidden.append(((here - there) ** 2).mean() / there.var(0).mean())
    assert terms["hidden"].item() == pytest.approx(torch.stack(hidden).mean().item(), rel=1e-4)
    own = method.targets.score(lm, [row])
    wanted = method.targets.scores[row.row_id][method.targets.stranger(row.row_id, 4)]
    assert terms["share"].item() == pytest.approx(quantile_distance(own, torch.tensor([wanted])).item(), rel=1e-4)


def test_shares_are_matched_within_kinds(made: Toy) -> None:
    """Rows of two kinds by hand: one kind's values stand where the other's should. At the adversary's weights too."""
    lm, method = made.ready("sae_erase", patch_share=0.0, share_within="kind")
    assert len(set(method.kinds.values())) == len({row.kind for row in method.data.streams["forget"]})
    with torch.no_grad():
        for p in trained_weights(lm).values():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    method.step, batch = 2, made.batch()["forget"]
    ids = [int(i) for i in batch.row_id_B[method.targets.has(batch)]]
    score = method.targets.score(lm, [method.targets.tokens[i] for i in ids])
    rising = [ids[n] for n in score.argsort()]
    method.kinds = {i: n % 2 for n, i in enumerate(method.relearner.rows)} | {i: int(n >= len(ids) // 2) for n, i in enumerate(rising)}
    crossed = dict(zip(rising, score.detach().sort(descending=True).values.tolist(), strict=True))
    method.targets.scores |= {i: [value] * len(method.targets.scores[i]) for i, value in crossed.items()}

    def by_hand(score_N: torch.Tensor, wanted_N: torch.Tensor, row_ids: list[int]) -> torch.Tensor:
        groups = [torch.tensor([n for n, i in enumerate(row_ids) if method.kinds[i] == kind]) for kind in (0, 1)]
        return sum(len(group) / len(row_ids) * quantile_distance(score_N[group], wanted_N[group]) for group in groups if len(group))

    wanted = torch.tensor([crossed[i] for i in ids])
    expected = by_hand(score, wanted, ids)
    assert forgotten(lm, method, batch)["share"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0.1
    assert quantile_distance(score, wanted).item() == pytest.approx(0, abs=1e-6), "over all of them nothing is wrong"
    asked = method.relearner.questions(2)
    score = method.targets.score(lm, [method.relearner.tokens[i] for i in asked])
    strangers = [method.targets.strangers[i][method.targets.stranger(i, 2)] for i in asked]
    assert method._got_out(lm).item() == pytest.approx(by_hand(score, method.targets.score(lm, strangers), asked).item(), rel=1e-4)
    method.config = replace(method.config, share_within="all")
    assert forgotten(lm, method, batch)["share"].item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_at_the_adversary_s_weights_is_added(made: Toy) -> None:
    lm, method = made.ready("sae_erase", meta_weight=2.0, patch_share=0.0)
    method.before_step(lm, 0, 10)
    method.loss(lm, made.batch()).total.backward()
    before = {name: p.grad.clone() for name, p in trained_weights(lm).items() if p.grad is not None}
    method.adjust_gradients(lm)
    weights = trained_weights(lm)
    assert any(g.any() for g in method.pressure.values())
    for name, gradient in method.pressure.items():
        torch.testing.assert_close(weights[name].grad, before[name] + 2.0 * gradient)
    copied = copy.deepcopy(lm)
    with torch.no_grad():
        for name, p in copied.named_parameters():
            if name in method.relearner.adversary.names:
                p.add_(method.relearner.adversary._delta(name))
    asked = [method.relearner.tokens[i] for i in method.relearner.questions(0)]
    score = method.targets.score(copied, asked)
    strangers = [method.targets.strangers[r.row_id][method.targets.stranger(r.row_id, 0)] for r in asked]
    expected = quantile_distance(score, method.targets.score(copied, strangers).detach())
    assert method.met.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    for name, gradient in method.pressure.items():
        torch.testing.assert_close(copied.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3)


def test_codes_of_the_original_model_can_be_put_back(made: Toy) -> None:
    """Put into the original model itself they change nothing; into another one they do, from that block on."""
    lm, method = made.ready("sae_erase", patch_share=1.0)
    rows = made.datamodule.streams["forget"][:4]
    plain = method.targets.score(lm, rows)
    with torch.no_grad():
        for name, p in trained_weights(lm).items():
            if ".layers.0." in name:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    moved = method.targets.score(lm, rows)
    back = method.targets.score(lm, rows, patched=[1])
    assert (moved - plain).abs().max() > 0.05
    assert not torch.allclose(back, moved, atol=1e-3)
    lm, method = made.ready("sae_erase", patch_share=1.0)
    for block in range(3):
        torch.testing.assert_close(method.targets.score(lm, rows, patched=[block]), plain, atol=1e-4, rtol=1e-4)


def test_blocks_that_are_put_back_are_one_or_all_from_one_on(made: Toy) -> None:
    lm, method = made.ready("sae_erase", patch_blocks="one")
    drawn = {tuple(method._patched(random.Random(seed))) for seed in range(60)}
    assert drawn == {(0,), (1,), (2,)}
    lm, method = made.ready("sae_erase", patch_blocks="up")
    drawn = {tuple(method._patched(random.Random(seed))) for seed in range(60)}
    assert drawn == {(0,), (1,), (2,), (0, 1, 2), (1, 2)}


def test_patched_answers_are_those_of_unknown_names_at_the_model_s_own_weights(made: Toy) -> None:
    lm, plain = made.ready("sae_erase", patch_weight=0.0)
    plain.before_step(lm, 0, 10)
    assert "patched" not in plain.loss(lm, made.batch()).terms
    lm, method = made.ready("sae_erase", patch_weight=3.0, patch_blocks="up")
    with torch.no_grad():
        for name, p in trained_weights(lm).items():
            if ".layers.0." in name:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    method.step = 3
    batch = made.batch()
    out = method.loss(lm, batch)
    blocks = method._patched(random.Random("patch own 0 3"))
    ids = [int(i) for i in batch["forget"].row_id_B[method.targets.has(batch["forget"])]]
    score = method.targets.score(lm, [method.targets.tokens[i] for i in ids], blocks)
    wanted = torch.tensor([method.targets.scores[i][method.targets.stranger(i, 3)] for i in ids])
    assert out.terms["patched"].item() == pytest.approx(quantile_distance(score, wanted).item(), rel=1e-4)
    assert out.terms["patched"].requires_grad
    whole = out.total.item()
    method.config = replace(method.config, patch_weight=0.0)
    assert whole == pytest.approx(method.loss(lm, batch).total.item() + 3.0 * out.terms["patched"].item(), rel=1e-4)


def test_an_adversary_lives_as_long_as_it_was_given(made: Toy) -> None:
    lm, method = made.ready("sae_erase", adversary_life=[2, 2], adversary_steps=1, meta_every=2)
    steps = []
    for number in range(8):
        method.before_step(lm, number, 10)
        assert bool(method.pressure) == (number % 2 == 0)
        steps.append(int(next(iter(method.relearner.adversary.optimizer.state.values()))["step"]))
    assert steps == [1, 1, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("adversary", ["full", "lora"])
@pytest.mark.parametrize("kept_after", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(made: Toy, tmp_path: Path, adversary: str, kept_after: int) -> None:
    lessons = {"adversary_lessons": ["half", "benign"], "patch_weight": 0.5, "patch_blocks": "up"} if adversary == "lora" else {}
    settings = {"adversary": adversary, "adversary_life": [2, 2], "replay_rounds": 1, "retain_noise": 0.5, **lessons}
    lm, method = made.ready("sae_erase", **settings)
    for number in range(4):
        if number == kept_after:
            module = UnlearningModule(lm, method, OptimConfig())
            checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
            module.on_save_checkpoint(checkpoint)
            torch.save(checkpoint, tmp_path / "last.ckpt")
        step(lm, method, made, number)
    wanted = {name: p.detach().clone() for name, p in trained_weights(lm).items()}
    lm, method = made.ready("sae_erase", **settings)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    UnlearningModule(lm, method, OptimConfig()).load_state_dict(state, strict=False)
    for number in range(kept_after, 4):
        step(lm, method, made, number)
    for name, p in trained_weights(lm).items():
        torch.testing.assert_close(p.detach(), wanted[name], rtol=0, atol=0)


def test_training_forgets_and_keeps(made: Toy) -> None:
    def right(lm: Any, stream: str, n: int) -> float:
        batch = made.batch(n)[stream]
        with torch.no_grad():
            logits = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]
        labels = batch.labels_BT[:, 1:]
        return (logits.argmax(-1) == labels)[labels != -100].float().mean().item()

    lm, _ = made.trained("sae_erase", steps=30, lr=2e-3)
    assert right(made.lm, "forget", 6) > 0.9
    assert right(lm, "forget", 6) < 0.7
    assert right(lm, "retain", 8) > 0.85
    before, after = (capture(m, made.batch(6)["forget"], LAYER, made.batch(6)["forget"].entity_end_B) for m in (made.lm, lm))
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("meta_loss", "hinge"),
        ("meta_weight", -1.0),
        ("share_weight", float("inf")),
        ("cap_margin", float("nan")),
        ("draws", 0),
        ("patch_share", 1.5),
        ("patch_blocks", "all"),
        ("patch_weight", -1.0),
        ("adversary_lessons", []),
        ("adversary_lessons", ["facts", "others"]),
        ("adversary_life", [5, 2]),
        ("adversary", "none"),
        ("objective", "nothing"),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        SAEEraseConfig(name="sae_erase", **{key: value})
