from __future__ import annotations

import copy
import doctest
from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny_gemma2, tiny_gpt2
from tests.toys import Toy, toy
from unlearn.errors import ModelError
from unlearn.methods import tracing
from unlearn.methods.tracing import answer_probability, entity_masks, hooked, mlp_of, spread, trace
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_doctests() -> None:
    assert doctest.testmod(tracing).failed == 0


def test_entity_masks_cover_the_name_and_nothing_else(made: Toy) -> None:
    rows = [*made.data.streams["forget"], replace(made.data.streams["forget"][0], row_id=900, mentions=("Ann",))]
    for batch in made.reader().batches(rows):
        mask = entity_masks(rows, batch, made.tokenizer)
        for place, row_id in enumerate(batch.row_id_B.tolist()):
            row = next(r for r in rows if r.row_id == row_id)
            assert made.tokenizer.decode(batch.input_ids_BT[place][mask[place]]).strip().rstrip("?") == row.mentions[0]


def test_answer_probability_by_hand(made: Toy) -> None:
    row = made.reader().tokens(made.data.streams["forget"][:1])[0]
    (batch,) = made.reader().batches([row])
    with torch.no_grad():
        probabilities = made.lm(input_ids=torch.tensor([row.ids])).logits[0].softmax(-1)
        expected = torch.stack([probabilities[i - 1, row.ids[i]] for i in range(row.answer_start, len(row.ids))]).mean()
        assert answer_probability(made.lm, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def run(made: Toy, lm: torch.nn.Module, **settings: object) -> tuple[float, ...]:
    return trace(lm, made.data.streams["forget"], made.reader(), **{"width": 1, "noise": 3.0, "draws": 2, "seed": 0, **settings})


@pytest.mark.parametrize("planted", [0, 2])
def test_the_block_whose_mlp_matters_is_found(made: Toy, planted: int) -> None:
    lm = copy.deepcopy(made.lm)
    with torch.no_grad():
        for n, block in enumerate(blocks_of(lm)):
            if n != planted:
                mlp_of(block).down_proj.weight.zero_()  # an MLP that says nothing brings nothing back
    alone = run(made, lm)
    assert len(alone) == 4
    assert alone[planted] != 0
    assert all(value == 0 for n, value in enumerate(alone) if n != planted)
    pairs = run(made, lm, width=2)
    assert [value != 0 for value in pairs] == [n <= planted <= n + 1 for n in range(3)]
    assert all(value == pytest.approx(alone[planted]) for value in pairs if value)


def test_repeats_for_a_seed_and_vanishes_without_noise(made: Toy) -> None:
    assert run(made, made.lm) == run(made, made.lm)
    assert run(made, made.lm) != run(made, made.lm, seed=1)
    assert run(made, made.lm, noise=0.0) == pytest.approx([0.0] * 4, abs=1e-7)


@pytest.mark.parametrize("make", [tiny_gemma2, tiny_gpt2])
def test_other_families(made: Toy, make) -> None:  # noqa: ANN001
    values = run(made, make(), width=2, draws=1)
    assert len(values) == 3
    assert any(values)


def test_a_hook_replaces_outputs_inside_the_context_only() -> None:
    layer = torch.nn.Linear(2, 2)
    x = torch.randn(1, 2)
    plain = layer(x)
    seen = []
    with hooked({5: layer}, lambda n, args, out: seen.append((n, out)) or out + 1), hooked({6: layer}, lambda *a: None, before=True):
        torch.testing.assert_close(layer(x), plain + 1)
    assert seen[0][0] == 5
    assert torch.equal(layer(x), plain)


def test_spread_keeps_short_lists_and_thins_long_ones(made: Toy) -> None:
    rows = made.data.streams["unknown"]
    assert spread(rows, 99) == list(rows)
    assert [r.row_id - 200 for r in spread(rows, 3)] == [0, len(rows) // 3, 2 * len(rows) // 3]


def test_a_block_without_an_mlp_is_an_error() -> None:
    with pytest.raises(ModelError, match="called mlp; found attn"):
        mlp_of(torch.nn.ModuleDict({"attn": torch.nn.Linear(1, 1)}))
