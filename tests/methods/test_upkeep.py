from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.methods import upkeep
from unlearn.methods.together import Part, forward_together
from unlearn.methods.undo import trained_weights
from unlearn.methods.upkeep import Changes, Upkeep
from unlearn.models.capture import EMBEDDINGS, capture
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def kept(made: Toy, seed: int = 0) -> tuple[Any, Upkeep]:
    lm, _ = made.ready("gradient_ascent")
    streams = made.datamodule.streams
    made_of = Upkeep(streams["retain"], streams["unknown"], made.reader().pad_id, 4, seed)
    made_of.measure(lm, made.reader().batches(streams["known"]))
    return lm, made_of


def changes(keep: Upkeep, lm: Any, *how: int, noise: float) -> tuple[Changes, Changes]:
    drawn = keep.drawn(lm, *how, noise)
    assert drawn is not None
    return drawn.changes(*forward_together(lm, [drawn.part], range(4)))


def shaken(keep: Upkeep, lm: Any, batch: TokenBatch, noise: float) -> torch.Tensor:
    found: torch.Tensor = forward_together(lm, [Part(batch, keep.shaken(batch, 1, noise))], [3])[0].hidden[3]
    return found


def test_doctests() -> None:
    assert doctest.testmod(upkeep).failed == 0


def test_known_codes_are_those_at_the_last_token_of_the_name(made: Toy) -> None:
    lm, keep = kept(made)
    assert set(keep.known) == {EMBEDDINGS, 0, 1, 2, 3}
    parts = [capture(lm, b, 2, b.entity_end_B).detach() for b in made.reader().batches(made.datamodule.streams["known"])]
    torch.testing.assert_close(keep.known[2], torch.cat(parts))


def test_nothing_has_changed_before_training_but_for_the_noise(made: Toy) -> None:
    lm, keep = kept(made)
    for step in range(4):
        for change in changes(keep, lm, step, 3, 3, noise=0.0):
            assert change.kl.item() == pytest.approx(0, abs=1e-6)
            assert change.hidden.item() == pytest.approx(0, abs=1e-9)
    noisy = [changes(keep, lm, step, 3, 3, noise=2.0) for step in range(6)]
    assert max(replayed.hidden.item() for replayed, _ in noisy) > 1e-4
    assert max(virtual.hidden.item() for _, virtual in noisy) < 1e-9


def test_a_moved_model_is_pulled_back(made: Toy) -> None:
    lm, keep = kept(made)
    original = copy.deepcopy(lm.state_dict())
    with torch.no_grad():
        for name, p in trained_weights(lm).items():
            if ".layers.3." in name:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    replayed, virtual = changes(keep, lm, 1, 4, 4, noise=0.0)
    assert min(replayed.kl, replayed.hidden, virtual.kl, virtual.hidden) > 1e-5
    (replayed.kl + virtual.hidden).backward()
    assert any(p.grad is not None and p.grad.any() for p in trained_weights(lm).values())
    assert all(torch.equal(lm.state_dict()[k], v) for k, v in original.items() if ".layers.3." not in k)


def test_a_group_of_no_rows_counts_nothing(made: Toy) -> None:
    lm, keep = kept(made)
    with torch.no_grad():
        next(iter(trained_weights(lm).values())).add_(0.5)
    replayed, virtual = changes(keep, lm, 2, 4, 0, noise=0.0)
    assert virtual.kl.item() == virtual.hidden.item() == 0
    assert replayed.hidden > 0
    assert keep.drawn(lm, 2, 0, 0, 1.0) is None


def test_a_row_is_shaken_in_the_same_way_wherever_it_stands(made: Toy) -> None:
    lm, keep = kept(made)
    batch = made.batch()["retain"]
    turned = type(batch)(*(t.flip(0) for t in batch))
    plain = capture(lm, batch, 3)
    moved = shaken(keep, lm, batch, 2.0)
    torch.testing.assert_close(shaken(keep, lm, turned, 2.0).flip(0), moved)
    before_name = torch.arange(plain.shape[1]) < batch.entity_end_B[:, None]
    torch.testing.assert_close(moved[before_name], plain[before_name])
    assert (moved - plain).abs().max() > 1e-3
    torch.testing.assert_close(shaken(keep, lm, batch, 0.0), plain)
