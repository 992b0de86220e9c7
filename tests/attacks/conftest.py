"""What an attack is given, on a toy model that knows its rows, on a random one, and on one with an intervention."""

import copy
from pathlib import Path

import pytest

from tests.toys import Toy, toy
from unlearn.attacks.base import AttackContext
from unlearn.attacks.facts import control_facts, target_facts


def context_of(made: Toy, **changes: object) -> AttackContext:
    facts = target_facts(made.data)
    given = {
        "lm": made.lm.eval(),
        "reader": made.reader(),
        "data": made.data,
        "target": facts,
        "control": control_facts(made.data, facts, 0),
        "sae": made.sae,
        "selection": made.selection,
        "original": lambda: copy.deepcopy(made.lm),
        "bare": lambda: made.lm,
    }
    return AttackContext(**{**given, **changes})


@pytest.fixture(scope="session")
def taught_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(Path(tmp_path_factory.mktemp("taught")), taught=True)


@pytest.fixture(scope="session")
def taught(taught_toy: Toy) -> AttackContext:
    """A model that knows the target's facts in the wording of ``train`` (``test`` asks in the same words here)."""
    made = context_of(taught_toy)
    return context_of(
        taught_toy,
        target=type(made.target)(made.target.train, made.target.train),
        control=type(made.control)(made.control.train, made.control.train),
    )


@pytest.fixture(scope="session")
def random_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(Path(tmp_path_factory.mktemp("random")))
