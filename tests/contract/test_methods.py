"""What every method of the registry has to do; a new method is tested here without a line of its own."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import MethodConfig
from unlearn.errors import ConfigError
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.methods.base import NEEDS, Method, MethodContext, concatenate
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.models.forward import forward, generate
from unlearn.registry import entries, find
from unlearn.types import STREAMS

ROOT = Path(__file__).parents[2]
ALL = sorted(set(entries("method")) - {"none"})


def _class(name: str) -> type[Method]:
    return find("method", name).load()


def _default(name: str) -> MethodConfig:
    return _class(name).Config(name=name)


LOSSES = [name for name in ALL if _class(name).streams_of(_default(name))]
"""Methods with a loss; the others edit weights once or act at inference."""
INTERVENTIONS = [name for name in ALL if entries("method")[name].facts.get("intervention")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def total(lm: Any, method: Method, batch: dict) -> torch.Tensor:
    torch.manual_seed(0)
    method.before_step(lm, 1, 10)
    return method.loss(lm, batch).total


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_finite_differentiable_scalar_in_full_precision(made: Toy, name: str) -> None:
    lm, method = made.ready(name)
    method.before_step(lm, 1, 10)
    out = method.loss(lm, made.batch())
    assert out.total.shape == ()
    assert out.total.dtype in (torch.float32, torch.float64)
    assert torch.isfinite(out.total)
    assert "forget" in out.terms
    assert all(torch.isfinite(v).all() and v.numel() == 1 for v in out.terms.values())
    out.total.backward()
    weights = [p for p in (*lm.parameters(), *method.parameters()) if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_does_not_see_padding(made: Toy, name: str) -> None:
    batch = made.batch()
    wide = {s: concatenate([b, _one_long_row(b)]) for s, b in batch.items()}
    padded = {s: type(b)(*(t[: len(batch[s].row_id_B)] for t in b)) for s, b in wide.items()}
    assert padded["forget"].input_ids_BT.shape[1] > batch["forget"].input_ids_BT.shape[1]
    (lm, method), (other_lm, other) = made.ready(name), made.ready(name)
    assert total(other_lm, other, padded).item() == pytest.approx(total(lm, method, batch).item(), rel=1e-4, abs=1e-6)


def _one_long_row(batch):  # noqa: ANN001, ANN202
    return type(batch)(*(torch.nn.functional.pad(t[:1], (0, 7)) if t.ndim == 2 else t[:1] for t in batch))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_does_not_depend_on_row_order(made: Toy, name: str) -> None:
    batch = made.batch()
    turned = {s: type(b)(*(t.flip(0) for t in b)) for s, b in batch.items()}
    (lm, method), (other_lm, other) = made.ready(name), made.ready(name)
    assert total(other_lm, other, turned).item() == pytest.approx(total(lm, method, batch).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_only_what_is_trained_and_nothing_above_the_deepest_layer(made: Toy, name: str) -> None:
    lm, method = made.ready(name)
    chosen = {n for n, p in lm.named_parameters() if p.requires_grad}
    total(lm, method, made.batch()).backward()
    method.adjust_gradients(lm)
    touched = {n for n, p in lm.named_parameters() if p.grad is not None}
    assert touched <= chosen
    assert bool(chosen) == method.trains
    deepest = method.deepest_layer()
    if deepest is not None:
        everything = copy.deepcopy(lm).requires_grad_(True)
        total(everything, method, made.batch()).backward()
        above = [p for block in blocks_of(everything)[deepest + 1 :] for p in block.parameters()]
        assert all(p.grad is None or p.grad.abs().sum() == 0 for p in above)
    assert all(p.grad is None for p in made.sae.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_is_left_alone(made: Toy, name: str) -> None:
    batch = made.batch()["retain"]
    before = made.reference.logits(batch), made.reference.hidden(batch, LAYER), copy.deepcopy(made.lm.state_dict())
    made.trained(name, steps=2)
    after = made.reference.logits(batch), made.reference.hidden(batch, LAYER)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=False))
    assert all(torch.equal(value, before[2][key]) for key, value in made.lm.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_reads_only_the_streams_and_needs_it_declares(made: Toy, name: str) -> None:
    cls = _class(name)
    assert set(cls.streams_of(_default(name))) <= set(STREAMS)
    assert cls.needs <= NEEDS
    if name in LOSSES:
        lm, method = made.ready(name)
        batch = {s: b for s, b in made.batch().items() if s in cls.streams_of(method.config)}
        assert torch.isfinite(total(lm, method, batch))
    if cls.required(_default(name)):
        with pytest.raises(ConfigError, match="needs"):
            cls(_default(name), MethodContext(n_blocks=4))


def _measured(made: Toy, lm: Any) -> tuple[float, torch.Tensor]:
    """Negative log-likelihood of the forget answers, and the hooked output at the last prompt token."""
    batch = made.batch()["forget"]
    with torch.no_grad():
        out = forward(lm, batch)
        return token_mean(token_nll(out.logits_AV, out.targets_A)).item(), capture(lm, batch, LAYER, batch.answer_start_B - 1)


@pytest.mark.parametrize("name", ALL)
def test_a_short_run_raises_the_forget_loss_or_moves_the_representation(made: Toy, name: str) -> None:
    nll, hidden_BD = _measured(made, made.lm)
    lm, _ = made.trained(name)
    after, moved_BD = _measured(made, lm)
    moved = ((moved_BD - hidden_BD).norm(dim=1) / hidden_BD.norm(dim=1)).mean().item()
    assert after > 1.01 * nll or moved > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_the_forget_term_falls_or_the_answers_get_less_likely(made: Toy, name: str) -> None:
    """A term whose weights follow the model's own probabilities may rise while its gradient works: then the answers have to show it."""
    lm, method = made.ready(name)
    weights = [p for p in (*lm.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    seen = []
    for _ in range(6):
        method.before_step(lm, 1, 10)
        optimizer.zero_grad()
        out = method.loss(lm, made.batch())
        seen.append(out.terms["forget"].item())
        out.total.backward()
        method.adjust_gradients(lm)
        optimizer.step()
    assert seen[-1] < seen[0] or _measured(made, lm)[0] > 1.01 * _measured(made, made.lm)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_agrees_with_float32(made: Toy, name: str) -> None:
    lm, method = made.ready(name)
    full = total(lm, method, made.batch()).item()
    lm, method = made.ready(name, dtype=torch.bfloat16)
    rough = total(lm, method, made.batch())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(full, rel=0.1, abs=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_state_survives_saving_and_loading(made: Toy, name: str) -> None:
    lm, first = made.ready(name)
    total(lm, first, made.batch())
    _, second = made.ready(name)
    second.load_state_dict(first.state_dict(), strict=False)

    def go_on(method: Method) -> float:
        torch.manual_seed(1)
        method.before_step(lm, 2, 10)
        return method.loss(lm, made.batch()).total.item()

    assert go_on(first) == go_on(second)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_changes_answers_and_no_weight_and_is_copied_with_the_model(made: Toy, name: str) -> None:
    batch = made.batch()["forget"]
    lm, method = made.trained(name)
    assert not method.trains
    assert {k: v for k, v in lm.state_dict().items() if k in made.lm.state_dict()}.keys() == made.lm.state_dict().keys()
    assert all(torch.equal(lm.state_dict()[k], v) for k, v in made.lm.state_dict().items())
    with torch.no_grad():
        changed, plain = forward(lm, batch).logits_AV, forward(made.lm, batch).logits_AV
        assert not torch.allclose(changed, plain)
        torch.testing.assert_close(forward(copy.deepcopy(lm), batch).logits_AV, changed)
    prompt = batch.input_ids_BT[0, : int(batch.answer_start_B[0])].tolist()
    fast = generate(lm, made.tokenizer, [prompt], 4)[0]
    slow = list(prompt)
    for _ in range(len(fast)):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([slow]), attention_mask=torch.ones(1, len(slow), dtype=torch.long), use_cache=False).logits
        slow.append(int(logits[0, -1].argmax()))
    assert slow[len(prompt) :] == fast


def _bad_values(field: dataclasses.Field, config: type[MethodConfig]) -> list[Any]:
    kind = str(field.type).split("|")[0].strip()
    if kind == "str" and field.name not in config.FREE_TEXT and "None" not in str(field.type):
        return ["no such choice"]
    return {"float": [math.nan], "int": [-(10**9)], "list[float]": [[math.nan]], "list[int]": [[-(10**9)]]}.get(kind, [])


@pytest.mark.parametrize("name", sorted(entries("method")))
def test_every_bad_hyper_parameter_is_refused_by_its_key(name: str) -> None:
    config = _class(name).Config
    for field in dataclasses.fields(config):
        for value in _bad_values(field, config):
            with pytest.raises(ConfigError, match=rf"method\.{field.name}\b"):
                config(**{"name": name, field.name: value})


@pytest.mark.parametrize("name", sorted(entries("method")))
def test_has_paper_summary_readme_row_and_test_file(name: str) -> None:
    entry = find("method", name)
    assert entry.facts["summary"]
    assert entry.facts["family"]
    assert f"[`{name}`]" in (ROOT / "README.md").read_text(encoding="utf-8")
    if name != "none":
        assert entry.facts["paper"].startswith("https://arxiv.org/abs/")
        stem = entry.module.rsplit(".", 1)[-1]
        assert (ROOT / "tests" / "methods" / f"test_{stem}.py").is_file()
