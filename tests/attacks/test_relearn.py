"""Relearning on a toy model: what is trained on what, what is asked, and that the model itself stays as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import tiny_llama
from unlearn.attack import weights_hash
from unlearn.attacks.asking import ask, brief, choose
from unlearn.attacks.facts import Facts
from unlearn.attacks.finetune import fine_tune, with_lora
from unlearn.attacks.relearn import (
    HalfConfig,
    LoraConfig,
    Relearn,
    RelearnBenign,
    RelearnConfig,
    RelearnHalf,
    RelearnLora,
    RelearnStatements,
    StatementsConfig,
)
from unlearn.errors import ConfigError

SMALL = {"lrs": [1e-3], "steps": [1, 3], "splits": 1}


def test_a_model_that_knows_the_facts_answers_and_chooses_right(taught):
    assert ask(taught.lm, taught.target.test, taught.reader).mean() == 1
    assert choose(taught.lm, taught.target.test, taught.reader, {}).mean() == 1
    assert ask(taught.lm, taught.control.test, taught.reader).mean() < 0.7


def test_answers_are_no_longer_than_it_takes(taught):
    assert brief(replace(taught.reader, max_new_tokens=500), taught.target.test).max_new_tokens < 20


def test_choosing_among_equal_values_is_chance(taught):
    rows = [replace(row, perturbed_answers=(row.answer.upper(),) if i else ()) for i, row in enumerate(taught.target.test[:2])]
    assert np.isnan(choose(taught.lm, rows, taught.reader, {})).tolist() == [True, True]


def test_fine_tuning_is_adamw_on_the_answers(taught):
    """Two steps against torch's own loop over the same rows."""
    rows = taught.reader.tokens(taught.target.train[:3])
    mine, theirs = tiny_llama(seed=3), tiny_llama(seed=3)
    mine.requires_grad_(False)
    assert list(fine_tune(mine, rows, taught.reader.pad_id, lr=1e-3, at=(1, 2), batch_size=8, seed=0)) == [1, 2]
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        nll = []
        for row in rows:
            logits = theirs(torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1]
            nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[row.answer_start :]), reduction="none"))
        optimizer.zero_grad()
        torch.cat(nll).mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_come_in_a_new_order_every_epoch_and_each_once():
    from unlearn.attacks.finetune import _orders

    order = _orders(5, 2, seed=0)
    epochs = [[i for _ in range(3) for i in next(order)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_every_variant_leaves_the_model_and_the_random_state_alone(taught):
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    for cls, config in ((Relearn, RelearnConfig), (RelearnHalf, HalfConfig), (RelearnBenign, RelearnConfig), (RelearnLora, LoraConfig)):
        attack = cls(config(**SMALL))
        assert attack.missing(taught) is None
        first, second = attack.run(taught).record(), attack.run(taught).record()
        assert first == second
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad for p in taught.lm.parameters())


def test_what_is_trained_on_is_not_asked_for(taught):
    found = Relearn(RelearnConfig(**SMALL)).run(taught)
    tested = ~np.isnan(found.target[0])
    assert found.cells == ("lr0.001_step1", "lr0.001_step3")
    assert 0 < tested.sum() < len(tested)
    half = RelearnHalf(HalfConfig(**SMALL)).run(taught)
    asked = {name for name, hit in zip(half.target_groups, half.target[0], strict=True) if not np.isnan(hit)}
    assert len(asked) == 1
    assert set(half.target_groups) - asked


def test_statements_are_taught_and_questions_asked(taught):
    def stated(facts):
        rows = tuple(replace(row, kind="statement", prompt=f"Note: {row.prompt}") for row in facts.train)
        return Facts(facts.train, facts.test, rows)

    attack = RelearnStatements(StatementsConfig(**SMALL))
    assert attack.missing(taught) == "statements in the forget stream about facts that are asked for"
    context = replace(taught, target=stated(taught.target), control=stated(taught.control))
    assert attack.missing(context) is None
    (lesson,) = attack.lessons(context, context.target)
    (plain,) = Relearn(RelearnConfig(**SMALL)).lessons(taught, taught.target)
    texts = [context.reader.tokenizer.decode(row.ids) for row in lesson.rows]
    assert len(lesson.rows) == len(plain.rows)
    assert all("Note: " in text for text in texts)
    assert list(lesson.asked) == list(plain.asked)
    found = attack.run(context)
    assert found.cells == ("lr0.001_step1", "lr0.001_step3")
    assert np.isnan(found.target).sum() == 2 * (len(context.target.test) - len(lesson.asked))


def test_splits_are_averaged_row_by_row(taught):
    one = [Relearn(RelearnConfig(**{**SMALL, "splits": n})).run(taught).target[0] for n in (1, 2, 3)]
    assert np.isnan(one[0]).sum() >= np.isnan(one[2]).sum()


def test_training_on_the_very_facts_brings_a_random_model_to_them(random_toy):
    """The loop learns: asked for what it was taught, a random model knows it."""
    from tests.attacks.conftest import context_of

    context = context_of(random_toy)
    lm = context.copy()
    rows = context.reader.tokens(context.target.train)
    assert ask(lm, context.target.train, context.reader).mean() < 0.5
    assert list(fine_tune(lm, rows, context.reader.pad_id, lr=5e-3, at=(80,), batch_size=8, seed=0)) == [80]
    assert ask(lm, context.target.train, context.reader).mean() == 1


def test_lora_trains_adapters_only(random_toy):
    from tests.attacks.conftest import context_of

    context = context_of(random_toy)
    lm = with_lora(context.copy(), 2, 4.0)
    names = [name for name, p in lm.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert any("down_proj" in name for name in names)
    assert any("q_proj" in name for name in names)


def test_benign_lessons_name_no_target(taught):
    attack = RelearnBenign(RelearnConfig(**SMALL))
    names = set(taught.target.entities)
    rows = [row for rows in attack.texts(taught).values() for row in rows]
    texts = [taught.reader.tokenizer.decode(row.ids) for row in rows]
    assert rows
    assert not [text for text in texts if any(name in text for name in names)]
    assert {cell.split("_")[0] for cell in attack.run(taught).cells} == {"text", "others"}


def test_one_target_cannot_be_halved(taught):
    name = taught.target.entities[0]
    rows = tuple(row for row in taught.target.train if row.entity == name)
    assert RelearnHalf(HalfConfig()).missing(replace(taught, target=Facts(rows, rows)))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lrs": []}, "lrs"), ({"lrs": [0.0]}, "lrs"), ({"lrs": [float("nan")]}, "lrs"), ({"steps": [0]}, "steps"),
        ({"steps": [5, 5]}, "steps"), ({"steps": []}, "steps"), ({"share": 1.0}, "share"), ({"share": float("nan")}, "share"),
        ({"splits": 0}, "splits"), ({"batch_size": 0}, "batch_size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("cls", "section"),
    [(RelearnConfig, "relearn"), (HalfConfig, "relearn_half"), (LoraConfig, "relearn_lora"), (StatementsConfig, "relearn_statements")],
)
def test_bad_settings_are_refused(cls, section, settings, key):
    with pytest.raises(ConfigError, match=rf"^attack\.{section}\.{key} must be"):
        cls(**settings)


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("alpha", 0.0), ("alpha", float("inf"))])
def test_bad_adapters_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"attack\.relearn_lora\.{name}"):
        LoraConfig(**{name: value})
