from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.data.tokenize import TokenRow, collate
from unlearn.errors import ConfigError
from unlearn.methods import elm
from unlearn.methods.elm import ELM, ELMConfig, erased, eta_along, soft_cross_entropy
from unlearn.models.forward import forward


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def answer_log_probs(lm: torch.nn.Module, ids: list[int], start: int, temperature: float) -> torch.Tensor:
    """Log-probabilities [a, V] of a single unpadded row, from the plain model."""
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


def test_doctests() -> None:
    assert doctest.testmod(elm).failed == 0


def test_the_target_at_its_limits() -> None:
    ref, expert, novice = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0)).unbind(0)
    ids, q = erased(ref, expert, novice, torch.zeros(4), temperature=1.0, top_k=9)
    torch.testing.assert_close(torch.zeros(4, 9).scatter(1, ids, q), ref.softmax(-1))
    ids, q = erased(expert, expert, novice, torch.ones(4), temperature=2.0, top_k=99)  # the reference is the expert: the novice is left
    torch.testing.assert_close(torch.zeros(4, 9).scatter(1, ids, q), (novice / 2).softmax(-1))
    ids, q = erased(ref, expert, novice, torch.full((4,), 1e4), temperature=1.0, top_k=3)  # only the ratio counts
    assert torch.equal(ids[:, 0], (novice.log_softmax(-1) - expert.log_softmax(-1)).argmax(-1))
    assert q.shape == (4, 3)
    torch.testing.assert_close(q.sum(-1), torch.ones(4))


def test_soft_cross_entropy_is_torch_s() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    q = torch.rand(5, 7).softmax(-1)
    ids = torch.stack([torch.randperm(7) for _ in range(5)])
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(5, 7).scatter(1, ids, q), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, ids, q), expected)


def test_eta_rises_along_the_row_by_hand() -> None:
    batch = collate([TokenRow((1, 5, 6, 7, 8), 3, 1, 0), TokenRow((1, 5, 6), 2, 1, 1)], 0)  # predicted at places 2 and 3 of 4, 1 of 2
    eta = eta_along(batch, 2.0, 10.0)
    assert eta.tolist() == [6.0, 8.0, 6.0]


def test_targets_by_hand(made: Toy) -> None:
    settings = {"eta_start": 1.0, "eta_end": 3.0, "top_k": 5, "temperature": 1.5}
    lm, method = made.ready("elm", expert="All about {entity}: ", novice="Nothing about {entity}: ", **settings)
    assert set(method.targets) == {row.row_id for row in made.data.streams["forget"]}
    row = made.data.streams["forget"][4]
    tokens = method.reader.tokens([row])[0]
    logs = [answer_log_probs(lm, list(tokens.ids), tokens.answer_start, 1.5)]
    for text in (f"All about {row.entity}: ", f"Nothing about {row.entity}: "):
        before = made.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [tokens.ids[0], *before, *tokens.ids[1:]]
        logs.append(answer_log_probs(lm, ids, tokens.answer_start + len(before), 1.5))
    last = len(tokens.ids) - 1
    eta = torch.tensor([1 + 2 * place / last for place in range(tokens.answer_start - 1, last)])
    score = logs[0] - eta[:, None].double() * (logs[1] - logs[2])
    ids_AK, q_AK = method.targets[row.row_id]
    assert torch.equal(ids_AK, score.topk(5).indices)
    torch.testing.assert_close(q_AK.double(), score.topk(5).values.softmax(-1), rtol=1e-3, atol=1e-5)


def test_a_swapped_novice_is_the_model_on_the_row_about_somebody_else(made: Toy) -> None:
    _, method = made.ready("elm", expert="", novice="", swap_novice=True, eta_end=1.0, schedule="constant", temperature=1.0, top_k=512)
    row = made.data.streams["forget"][0]
    strangers = [r.mentions[0] for r in made.data.streams["unknown"]]
    ids_AK, q_AK = method.targets[row.row_id]
    found = torch.zeros_like(q_AK).scatter(1, ids_AK, q_AK)
    distances = []
    for name in dict.fromkeys(strangers):
        tokens = method.reader.tokens([replace(row, prompt=row.prompt.replace(row.entity, name), entity=name, mentions=(name,))])[0]
        distances.append((answer_log_probs(made.lm, list(tokens.ids), tokens.answer_start, 1.0).exp() - found).abs().max().item())
    assert min(distances) < 1e-5 < sorted(distances)[1]


def test_the_terms_by_hand(made: Toy) -> None:
    batch = made.batch()
    for retain in ("argmax", "distribution"):
        lm, method = made.ready("elm", retain=retain, erase_weight=2.0, retain_weight=3.0, fluency_weight=0.5)
        out = method.loss(lm, batch)
        with torch.no_grad():
            kept = forward(lm, batch["retain"]).logits_AV.double().log_softmax(-1)
        ref = made.reference.logits(batch["retain"]).double().softmax(-1)
        expected = -kept.gather(1, ref.argmax(-1, keepdim=True)).mean() if retain == "argmax" else -(ref * kept).sum(-1).mean()
        assert out.terms["retain"].item() == pytest.approx(expected.item(), rel=1e-5)
        weighted = 2 * out.terms["forget"] + 3 * out.terms["retain"] + 0.5 * out.terms["fluency"]
        assert out.total.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_a_weight_of_zero_leaves_its_term_out(made: Toy) -> None:
    _, method = made.ready("elm", retain_weight=0.0, fluency_weight=0.0)
    assert set(method.loss(made.lm, made.batch()).terms) == {"forget"}
    assert method.continuations is None
    config = ELMConfig(name="elm", retain_weight=0.0)
    assert ELM.required(config) == {"rows"}
    assert ELM.streams_of(config) == ("forget",)
    assert ELM.reference_streams_of(config) == ()
    assert ELM.streams_of(ELMConfig(name="elm")) == ("forget", "retain")


def test_continuations_follow_the_forget_prompt_with_another_subject(made: Toy) -> None:
    method = made.method("elm", fluency_words=4)
    batch = made.batch()["forget"]
    seen = set()
    for step in range(2):
        texts, index = method.continuations.batch(batch, step)
        assert index.tolist() == list(range(len(batch.row_id_B)))
        for place in range(len(index)):
            start = int(batch.answer_start_B[place])
            assert texts.input_ids_BT[place, :start].tolist() == batch.input_ids_BT[place, :start].tolist()
            told = made.tokenizer.decode(texts.labels_BT[place][texts.labels_BT[place] >= 0], skip_special_tokens=True).strip()
            seen.add(told)
    assert seen == {"The author of the", "The answer is in"}


def test_the_model_learns_the_target(made: Toy) -> None:
    lm, method = made.ready("elm", retain_weight=0.0, fluency_weight=0.0, schedule="constant", eta_end=5.0)
    batch = made.batch()
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=1e-2)
    floor = -torch.cat(
        [(q * q.clamp(min=1e-30).log()).sum(-1) for _, q in map(method.targets.get, batch["forget"].row_id_B.tolist())]
    ).mean()
    first = method.loss(lm, batch).total.item() - floor.item()
    for _ in range(40):
        optimizer.zero_grad()
        method.loss(lm, batch).total.backward()
        optimizer.step()
    assert -1e-4 < method.loss(lm, batch).total.item() - floor.item() < 0.5 * first


def test_trains_the_share_of_blocks_that_the_paper_does(made: Toy) -> None:
    method = made.method("elm")
    assert [method.trainable(n).blocks for n in (4, 26, 32)] == ["0-0", "3-5", "4-7"]


def test_a_context_that_does_not_fit_is_an_error(made: Toy) -> None:
    with pytest.raises(ConfigError, match=r"method\.expert and method\.novice must leave room in the model's context of 256 tokens"):
        made.ready("elm", expert="What is known about {entity} " * 50)


def test_fluency_needs_generic_texts(made: Toy) -> None:
    cls = type(made.method("elm"))
    context = made.context(data=replace(made.data, generic=()))
    with pytest.raises(ConfigError, match=r"method\.fluency_weight must be 0"):
        cls(ELMConfig(name="elm"), context)
    assert cls(ELMConfig(name="elm", fluency_weight=0.0), context).continuations is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eta_start", -1.0),
        ("eta_end", 0.5),
        ("schedule", "rise"),
        ("temperature", 0.0),
        ("top_k", 0),
        ("erase_weight", -1.0),
        ("retain", "kl"),
        ("retain_weight", float("inf")),
        ("fluency_weight", -0.1),
        ("fluency_words", 0),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        ELMConfig(name="elm", **{key: value})
