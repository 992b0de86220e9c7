"""Suffix search: where the suffix stands, its gradient and loss against the model's own, and the search against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import BOS, EOS, PAD, UNK, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.attack import weights_hash
from unlearn.attacks.facts import Facts
from unlearn.attacks.search import Case, Search, SearchConfig, Searcher, cases, eligible
from unlearn.errors import ConfigError
from unlearn.models.intervene import intervene
from unlearn.types import PromptFormat

ASKED = (Case((1, 20, 21, 22, 30, 40, 41), 4, 5), Case((1, 23, 30, 42), 2, 3))
"""A question of three tokens with an answer of two, and one of one with an answer of one; token 30 stands before the answer."""
ALLOWED = list(range(50, 74))


def searcher(lm, length=1, allowed=ALLOWED, **changes):
    return Searcher(lm, ASKED, allowed, **{"length": length, "pad_id": PAD, "batch_size": 64, "seed": 0, **changes})


def loss_by_hand(lm, suffix):
    """Mean over questions of the mean NLL of the answer, from the model's own logits, one question at a time."""
    means = []
    for case in ASKED:
        ids = [*case.ids[: case.place], *suffix, *case.ids[case.place :]]
        logits = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = case.answer_start + len(suffix)
        means.append(torch.stack([-logits[t - 1, ids[t]] for t in range(start, len(ids))]).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_losses_are_the_model_s(make):
    lm = make()
    suffixes = torch.tensor([[50, 51], [60, 73], [55, 55]])
    with torch.no_grad():
        expected = torch.stack([loss_by_hand(lm, row.tolist()) for row in suffixes])
    for batch_size in (1, 4, 64):
        torch.testing.assert_close(searcher(lm, 2, batch_size=batch_size).losses(suffixes), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_the_gradient_is_that_of_the_one_hot_vectors(make):
    """Against one-hot vectors put through the model's own ``inputs_embeds``."""
    lm = make()
    suffix = [50, 61]
    table = lm.get_input_embeddings()(torch.arange(512)).detach()
    one_hot = torch.nn.functional.one_hot(torch.tensor(suffix), 512).float().requires_grad_(True)
    losses = []
    for case in ASKED:
        ids = torch.tensor([*case.ids[: case.place], *suffix, *case.ids[case.place :]])
        inputs = torch.cat([table[ids[: case.place]], one_hot @ table, table[ids[case.place + 2 :]]])
        logits = lm(inputs_embeds=inputs[None]).logits[0]
        start = case.answer_start + 2
        losses.append(torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:]))
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), one_hot)
    torch.testing.assert_close(searcher(lm, 2).gradient(torch.tensor(suffix)), expected[:, ALLOWED], atol=1e-5, rtol=1e-3)


def test_one_token_is_found_as_brute_force_finds_it():
    """With every token a candidate, one step of a suffix of one token is an exhaustive search."""
    for seed in range(2):
        lm = tiny_llama(seed=seed)
        with torch.no_grad():
            losses = {token: float(loss_by_hand(lm, [token])) for token in ALLOWED}
        best = min(losses, key=losses.get)
        start = max(losses, key=losses.get)
        suffix, loss = next(searcher(lm).search(torch.tensor([start]), 1, top_k=100, count=100))
        assert suffix.tolist() == [best]
        assert loss == pytest.approx(losses[best], abs=1e-4)


def test_the_loss_never_rises_and_falls():
    lm = tiny_llama().requires_grad_(False)
    made = searcher(lm, 4)
    start = made.start(1)
    trace = [(suffix.tolist(), loss) for suffix, loss in made.search(start, 12, top_k=8, count=8)]
    losses = [float(loss_by_hand(lm, start.tolist())), *(loss for _, loss in trace)]
    assert all(b <= a + 1e-6 for a, b in zip(losses, losses[1:], strict=False))
    assert losses[-1] < losses[0] - 0.05
    for suffix, loss in trace:
        assert set(suffix) <= set(ALLOWED)
        assert loss == pytest.approx(float(loss_by_hand(lm, suffix)), abs=1e-4)


def test_the_search_starts_from_the_token_that_disturbs_least():
    lm = tiny_llama().requires_grad_(False)
    losses = {token: float(loss_by_hand(lm, [token, token])) for token in ALLOWED}
    assert searcher(lm, 2).start(len(ALLOWED)).tolist() == [min(losses, key=losses.get)] * 2
    assert len({int(searcher(lm, 2, seed=seed).start(1)[0]) for seed in range(5)}) > 1


def test_candidates_change_one_place_to_a_promising_token():
    made = searcher(tiny_llama(), 3)
    suffix = torch.tensor([50, 51, 52])
    slope = made.gradient(suffix)
    tried = made.candidates(suffix, top_k=4, count=100)
    assert len({tuple(row) for row in tried.tolist()}) == 12
    for row in tried:
        (place,) = (row != suffix).nonzero().flatten().tolist()
        others = [float(slope[place, i]) for i, token in enumerate(ALLOWED) if token != int(suffix[place])]
        assert float(slope[place, ALLOWED.index(int(row[place]))]) <= sorted(others)[3] + 1e-6


def test_the_suffix_stands_after_the_question_and_before_what_the_format_adds(taught):
    rows, tokenizer = taught.target.test[:3], taught.reader.tokenizer
    formats = (
        taught.reader.prompt_format,
        PromptFormat(question="{question}", separator=" "),
        PromptFormat(question="<{question}>\n", end="."),
    )
    mark = tokenizer("Paris", add_special_tokens=False)["input_ids"]
    for fmt in formats:
        reader = replace(taught.reader, prompt_format=fmt)
        for case, row, tokens in zip(cases(rows, reader), rows, reader.tokens(rows), strict=True):
            made = case.with_suffix(mark)
            before, after = fmt.question.split("{question}")
            text = tokenizer.decode(made.ids, skip_special_tokens=True)
            assert text == f"{before}{row.prompt}Paris{after}{fmt.separator}{row.answer}{fmt.end}"
            assert made.ids[made.answer_start :] == tokens.ids[tokens.answer_start :]
            assert case.ids == tokens.ids
            assert made.ids[0] == BOS


def test_a_stem_gets_its_suffix_before_the_answer(taught):
    row = replace(taught.target.test[0], kind="statement", prompt="Ann Lee was born in", answer="Paris")
    (case,) = cases([row], taught.reader)
    assert case.place == case.answer_start


def test_special_tokens_are_no_candidates(taught):
    tokenizer = taught.reader.tokenizer
    found = eligible(tokenizer, 300)
    assert not {PAD, BOS, EOS, UNK} & set(found)
    assert found == sorted(found)
    assert max(found) < 300
    assert len(eligible(tokenizer, 10**6)) == len(tokenizer) - 4


def test_it_reads_a_model_with_an_intervention_as_it_acts():
    lm = tiny_llama()
    plain = searcher(lm, 2).losses(torch.tensor([[50, 51]]))
    handle = intervene(lm, {1: lambda hidden, seen: hidden * 0.5}, bos_id=BOS)
    with torch.no_grad():
        expected = loss_by_hand(lm, [50, 51])
    found = searcher(lm, 2)
    torch.testing.assert_close(found.losses(torch.tensor([[50, 51]]))[0], expected, atol=1e-4, rtol=1e-4)
    assert abs(float(expected) - float(plain[0])) > 1e-3
    assert found.gradient(torch.tensor([50, 51])).abs().max() > 0
    handle.remove()


def attributed(facts):
    """The toy's rows with an attribute each, so that there are facts to search on and facts to ask for."""
    rows = tuple(replace(row, attribute=f"a{i % 3}") for i, row in enumerate(facts.train))
    return Facts(rows, rows)


def test_rows_of_the_facts_it_may_use_are_not_asked(taught):
    context = replace(taught, target=attributed(taught.target), control=attributed(taught.control))
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in taught.lm.parameters()]
    attack = Search(SearchConfig(steps=[1, 3], length=2, candidates=4))
    assert attack.missing(context) is None
    first = attack.run(context)
    assert first.record() == attack.run(context).record()
    assert first.cells == ("step1", "step3")
    asked = ~np.isnan(first.target)
    per_attribute = {
        row.attribute: set(asked[:, [i % 3 == n for i in range(asked.shape[1])]].flatten().tolist())
        for n, row in enumerate(context.target.test[:3])
    }
    assert sorted(map(len, per_attribute.values())) == [1, 1, 1]
    taught_attributes = [a for a, seen in per_attribute.items() if seen == {False}]
    assert len(taught_attributes) == 1
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)
    for p, grad in zip(taught.lm.parameters(), grads, strict=True):
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)


def test_one_fact_about_everybody_is_not_enough(taught):
    one = replace(taught, target=Facts(taught.target.train[:1], taught.target.train[:1]))
    assert Search(SearchConfig()).missing(one) == "two facts or more about a target"


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 0), ("candidates", 0), ("top_k", 0), ("questions", 0), ("steps", []), ("steps", [0, 2]), ("steps", [3, 3])]
    + [("share", value) for value in (0.0, 1.0, float("nan"))],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^attack.search.{field} must be"):
        SearchConfig(**{field: value})
