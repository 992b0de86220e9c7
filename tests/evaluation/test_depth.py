"""Depth by activation patching, checked where the answer is known beforehand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import PEOPLE, Toy, toy
from unlearn.data.swap import matched_rows
from unlearn.errors import DataError
from unlearn.evaluation.depth import depth_score, lens_ranks, measure_depth
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def gold_of(made: Toy) -> object:
    """A model that differs from the original from block 2 on."""
    gold = copy.deepcopy(made.lm)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in blocks_of(gold)[2:]:
            block.mlp.down_proj.weight.add_(torch.randn(block.mlp.down_proj.weight.shape, generator=generator))
    return gold


def test_score_by_hand() -> None:
    assert depth_score(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 4.0])) == pytest.approx(2 / 3)
    assert depth_score(torch.tensor([1.0, 0.04]), torch.tensor([0.25, 9.0])) == pytest.approx(0.25)
    assert depth_score(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 1.0
    assert depth_score(torch.tensor([0.0]), torch.tensor([1.0])) != depth_score(torch.tensor([0.0]), torch.tensor([1.0]))


def test_the_original_model_has_lost_nothing_and_the_gold_model_everything(made: Toy) -> None:
    gold, tokens = gold_of(made), made.reader().tokens(made.data.evaluation["forget"])
    intact = measure_depth(made.lm, copy.deepcopy(made.lm), tokens, made.reader(), gold=gold)
    assert torch.allclose(intact.model_L, torch.zeros(4, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(intact.reference_L[:2], torch.zeros(2, dtype=torch.float64), atol=1e-5)
    assert intact.reference_L[2:].abs().min() > 1e-3
    gone = measure_depth(made.lm, gold, tokens, made.reader(), gold=gold)
    assert torch.allclose(gone.model_L, gone.reference_L)


def test_patching_one_row_is_what_a_hook_by_hand_does(made: Toy) -> None:
    gold, layer = gold_of(made), 2
    row = made.reader().tokens(made.data.evaluation["forget"])[0]
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        source = gold.model(ids, output_hidden_states=True).hidden_states[layer + 1]
        before = made.lm(ids).logits[0]

        def patch(module, args, output):  # noqa: ANN001, ANN202
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, row.answer_start - 1 : -1] = source[0, row.answer_start - 1 : -1]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = made.lm.model.layers[layer].register_forward_hook(patch)
        after = made.lm(ids).logits[0]
        handle.remove()
    where = torch.arange(row.answer_start - 1, len(row.ids) - 1)
    right = ids[0, where + 1]
    expected = (before.log_softmax(-1)[where, right] - after.log_softmax(-1)[where, right]).mean().item()
    assert measure_depth(made.lm, gold, [row], made.reader(), gold=gold).reference_L[layer].item() == pytest.approx(expected, abs=1e-5)


def test_entity_swap_needs_no_gold_model(made: Toy) -> None:
    rows = made.data.evaluation["forget"]
    swapped = matched_rows(rows, PEOPLE["unknown"], 1, 0)
    by_id = {row.row_id: row for row in swapped}
    reader = made.reader()
    tokens, others = reader.tokens(rows), reader.tokens([replace(by_id[row.row_id], answer=row.answer) for row in rows])
    found = measure_depth(made.lm, made.lm, tokens, reader, swapped=others)
    assert found.reference_L.abs().max() > 1e-4
    assert torch.allclose(found.model_L, torch.zeros(4, dtype=torch.float64), atol=1e-5)
    with pytest.raises(DataError, match=r"Depth must be measured against a gold model or one swapped row for each row \(6\); found 0"):
        measure_depth(made.lm, made.lm, tokens, reader)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_the_lens_of_the_last_layer_is_the_models_own_rank(made: Toy, make, tmp_path: Path) -> None:  # noqa: ANN001
    lm = make()
    tokens = made.reader().tokens(made.data.evaluation["forget"])
    ranks = []
    for row in tokens:
        with torch.no_grad():
            logits = lm(torch.tensor([row.ids])).logits[0, row.answer_start - 1]
        ranks.append(int((logits > logits[row.ids[row.answer_start]]).sum()))
    found = lens_ranks(lm, tokens, made.reader())
    last = len(blocks_of(lm)) - 1
    assert found[f"forget/lens_rank@layer{last}"] == pytest.approx(float(torch.tensor(ranks).double().median()), abs=1)
    assert len(found) == last + 1


def test_the_suite_measures_depth_where_it_can_load_the_original_again(made: Toy) -> None:
    suite = made.suite()
    assert suite.deep(made.lm) == {}
    suite.original = lambda: made.lm
    found = suite.deep(made.lm)
    assert found["forget/depth_model@layer3"] == pytest.approx(0.0, abs=1e-5)
    assert found["forget/lens_rank@layer0"] >= 0
    suite.gold_model = lambda: gold_of(made)
    assert suite.deep(made.lm)["forget/depth_reference@layer1"] == pytest.approx(0.0, abs=1e-5)
