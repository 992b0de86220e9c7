from __future__ import annotations

import doctest
import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.data.tokenize import collate
from unlearn.methods import together
from unlearn.methods.counterfactual import predicting_all
from unlearn.methods.together import Part, Touch, by_length, forward_together
from unlearn.methods.undo import trained_weights
from unlearn.models.edit import edited
from unlearn.models.forward import Forward, forward, up_to_answers
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_doctests() -> None:
    assert doctest.testmod(together).failed == 0


def test_groups_have_the_least_padding_there_can_be() -> None:
    """Against every way to cut the sorted rows."""
    rng = random.Random(0)
    for _ in range(40):
        lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 7))]
        most = rng.randint(1, 4)
        groups = by_length(lengths, most)
        assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
        assert len(groups) <= most
        assert all(group == sorted(group) for group in groups)
        ordered = sorted(lengths)
        cuts = (c for n in range(min(most, len(ordered))) for c in itertools.combinations(range(1, len(ordered)), n))
        wanted = min(sum((b - a) * ordered[b - 1] for a, b in itertools.pairwise((0, *cut, len(ordered)))) for cut in cuts)
        assert sum(len(group) * max(lengths[i] for i in group) for group in groups) == wanted


def three(made: Toy) -> list[Part]:
    """Batches of unlike lengths: one plain, one changed at two blocks, one with a label on every token."""
    batch, streams = made.batch(5), made.datamodule.streams
    retain, generator = batch["retain"], torch.Generator().manual_seed(0)
    named_N = (retain.entity_end_B >= 0).nonzero()[:, 0]
    value_ND = torch.randn(len(named_N), made.lm.config.hidden_size, generator=generator)
    added_N = torch.arange(len(named_N)) % 2 == 0
    touches = [Touch(layer, named_N, retain.entity_end_B[named_N], value_ND, added_N) for layer in (0, 2)]
    wide = TokenBatch(*collate(sorted(streams["unknown"], key=lambda row: len(row.ids))[:3], made.reader().pad_id, 40))
    return [Part(batch["forget"]), Part(retain, touches), Part(predicting_all(wide, wide.attention_mask_BT.bool()))]


def alone(lm: Any, part: Part) -> Forward:
    """One pass of one part, with the changes made by hand."""

    def by(touch: Touch) -> Any:
        def edit(hidden_BTD: torch.Tensor) -> torch.Tensor:
            changed = hidden_BTD.clone()
            for row, place, value, added in zip(touch.row_N, touch.pos_N, touch.value_ND, touch.added_N, strict=True):
                changed[row, place] = hidden_BTD[row, place] + value if added else value
            return changed

        return edit

    if not part.touches:
        return forward(lm, part.batch, layers=range(4))
    first, second = part.touches
    with edited(lm, first.layer, by(first)), edited(lm, second.layer, by(second)):
        return forward(lm, part.batch, layers=range(4))


def test_what_comes_back_is_what_a_pass_of_each_gives_gradients_included(made: Toy) -> None:
    lm, _ = made.ready("gradient_ascent")
    weights, parts = list(trained_weights(lm).values()), three(made)

    def gradients(outs: list[Forward]) -> tuple[torch.Tensor, ...]:
        masks = [part.batch.attention_mask_BT.bool() for part in parts]
        heads = sum(out.logits_AV.square().mean() * (i + 1) + out.final_AD.abs().mean() for i, out in enumerate(outs))
        hidden = sum(out.hidden[n][mask].square().mean() * (n + 1) for out, mask in zip(outs, masks, strict=True) for n in range(4))
        return torch.autograd.grad(heads + hidden, weights, allow_unused=True)

    mine, theirs = forward_together(lm, parts, range(4)), [alone(lm, part) for part in parts]
    for one, other, part in zip(mine, theirs, parts, strict=True):
        assert torch.equal(one.row_A, other.row_A)
        assert torch.equal(one.targets_A, other.targets_A)
        torch.testing.assert_close(one.logits_AV, other.logits_AV, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.final_AD, other.final_AD, atol=1e-5, rtol=1e-4)
        mask_BT = part.batch.attention_mask_BT.bool()
        for n in range(4):
            assert one.hidden[n].shape == other.hidden[n].shape
            torch.testing.assert_close(one.hidden[n][mask_BT], other.hidden[n][mask_BT], atol=1e-5, rtol=1e-4)
    for a, b in zip(gradients(mine), gradients(theirs), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("last", [True, False])
def test_labels_behind_what_is_read_are_not_lost(made: Toy, last: bool) -> None:
    """Rows that are read up to the token before their last label, among shorter and among longer ones."""
    lm, _ = made.ready("gradient_ascent")
    rows = sorted(made.datamodule.streams["forget"], key=lambda row: row.answer_start)
    cut = TokenBatch(*collate([replace(row, ids=row.ids[: row.answer_start + 1]) for row in rows], made.reader().pad_id))
    others = TokenBatch(*collate([replace(row, ids=row.ids[: row.answer_start + 1]) for row in rows[:2]], made.reader().pad_id))
    longer = made.batch()["retain"]
    parts = [Part(up_to_answers(cut)), Part(others if last else longer)]
    assert (cut.attention_mask_BT.sum(1) == cut.input_ids_BT.shape[1]).any()
    for mine, part in zip(forward_together(lm, parts, [1]), parts, strict=True):
        alone = forward(lm, part.batch)
        assert torch.equal(mine.row_A, alone.row_A)
        assert torch.equal(mine.targets_A, alone.targets_A)
        torch.testing.assert_close(mine.logits_AV, alone.logits_AV, atol=1e-5, rtol=1e-4)


def test_no_more_passes_than_parts_and_parts_may_be_empty(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _ = made.ready("gradient_ascent")
    seen: list[tuple[int, ...]] = []

    def counted(*args: Any, **how: Any) -> Forward:
        seen.append(tuple(args[1].input_ids_BT.shape))
        return forward(*args, **how)

    monkeypatch.setattr(together, "forward", counted)
    parts = three(made)
    nobody = Part(TokenBatch(*(t[:0] for t in parts[0].batch)))
    outs = forward_together(lm, [*parts, nobody], [1])
    assert len(seen) <= 4
    padded = sum(part.batch.input_ids_BT.numel() for part in parts)
    assert sum(rows * width for rows, width in seen) < padded
    assert len(outs[3].logits_AV) == len(outs[3].hidden[1]) == 0


def test_what_stands_behind_the_answers_need_not_be_read(made: Toy) -> None:
    lm, _ = made.ready("gradient_ascent")
    batch = made.batch()["forget"]
    short = up_to_answers(batch)
    assert short.input_ids_BT.shape[1] < batch.input_ids_BT.shape[1]
    torch.testing.assert_close(forward(lm, short).logits_AV, forward(lm, batch).logits_AV, atol=1e-5, rtol=1e-4)
    late = batch._replace(entity_end_B=batch.attention_mask_BT.sum(1) - 1)
    assert up_to_answers(late).input_ids_BT.shape == batch.input_ids_BT.shape
