"""Every attack of the registry on a model on a GPU, beside the same on the CPU with the same seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.attacks.conftest import context_of
from tests.contract.test_attacks import NAMES, attack_of, with_attributes
from tests.gpu.device import DEVICE, REHEARSAL, note
from tests.toys import Toy, toy
from unlearn.attacks.base import AttackContext, Outcome

DRAWN = {"sample"}
"""Attacks that draw tokens: a GPU draws others from the same seed, so they are held against themselves."""
TRAINED = {name for name in NAMES if name.startswith("relearn")} | {"search"}
"""Attacks that train or search: rounding may turn single answers around, so the mean of each cell may differ by one fact."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return with_attributes(toy(tmp_path_factory.mktemp("toy"), taught=True))


def context(made: Toy) -> AttackContext:
    found = context_of(made)
    sides = {
        side: type(facts)(facts.train, facts.train, facts.train) for side, facts in (("target", found.target), ("control", found.control))
    }
    return replace(found, **sides)


def apart(a: Outcome, b: Outcome, means: bool) -> float:
    """Largest difference of a fact's number, or of a cell's mean."""
    assert a.cells == b.cells
    pairs = [(a.target, b.target), (a.control, b.control)]
    assert all(np.array_equal(np.isnan(x), np.isnan(y)) for x, y in pairs)
    if means:
        return max(float(np.abs(np.nanmean(x, 1) - np.nanmean(y, 1)).max()) for x, y in pairs)
    return max(float(np.nanmax(np.abs(x - y))) for x, y in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_finds_what_it_finds_on_the_cpu(taught: Toy, name: str) -> None:
    """Hits are the same one by one, and what is measured in parts of 1 to 0.001; see ``DRAWN`` and ``TRAINED`` for the exceptions."""
    there = context(taught.on(DEVICE))
    found = attack_of(name).run(there)
    wanted = attack_of(name).run(there if name in DRAWN else context(taught))
    facts = min(wanted.target.shape[1], wanted.control.shape[1])
    difference = apart(wanted, found, means=name in TRAINED)
    note("attack", case=name, difference=difference)
    assert difference <= (0.0 if name in DRAWN or REHEARSAL else 1 / facts if name in TRAINED else 1e-3)
    assert {p.device.type for p in there.lm.parameters()} == {DEVICE}
