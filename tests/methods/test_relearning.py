"""What an adversary is taught, and what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toys import Toy, toy
from unlearn.errors import DataError
from unlearn.methods.relearning import Relearner
from unlearn.methods.tar import TARConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(Path(tmp_path_factory.mktemp("toy")))


def relearner(made: Toy, lessons: list[str], rows: Any = None, others: Any = None) -> tuple[Any, Relearner]:
    lm, _ = made.ready("gradient_ascent")
    config = TARConfig(name="tar", adversary_lessons=lessons)
    streams = made.data.streams
    rows, others = streams["forget"] if rows is None else rows, streams["retain"] if others is None else others
    return lm, Relearner(lm, config, rows, made.reader(), 0, others)


def test_half_teaches_all_facts_of_some_and_asks_about_the_others(made: Toy) -> None:
    lm, found = relearner(made, ["half"])
    chosen = set()
    for step in range(8):
        found.begin(lm, step)
        taught = {found.rows[i].entity for i in found.taught}
        asked = {found.rows[i].entity for i in found.questions(step)}
        assert len(taught) == 1
        assert not taught & asked
        assert set(found.taught) == {row.row_id for row in found.lessons if row.entity in taught}
        chosen |= taught
    assert len(chosen) == 2


def test_benign_teaches_about_others_only_and_asks_about_everybody(made: Toy) -> None:
    lm, found = relearner(made, ["benign"])
    found.begin(lm, 3)
    targets = {row.entity for row in made.data.streams["forget"]}
    kept = {row.row_id: row for row in made.data.streams["retain"] if row.kind == "qa" and row.mentions}
    assert set(found.taught) == set(kept)
    assert not {kept[i].entity for i in found.taught} & targets
    assert {found.rows[i].entity for i in found.asked()} == targets
    assert set(found.asked()) == set(found.rows)
    loss = found.attack(lm, 3, 0)
    assert loss > 0


def test_kinds_are_drawn_and_the_usual_one_teaches_what_it_did(made: Toy) -> None:
    """Facts are split by the number of the adversary alone, whatever other kinds there are."""
    lm, plain = relearner(made, ["facts"])
    _, mixed = relearner(made, ["facts", "half", "benign"])
    kinds = []
    for step in range(30):
        plain.begin(lm, step)
        mixed.begin(lm, step)
        benign = not set(mixed.taught) & set(mixed.rows)
        half = not benign and len({mixed.rows[i].entity for i in mixed.taught}) == 1
        kinds.append("benign" if benign else "half" if half else "facts")
        if kinds[-1] == "facts":
            assert mixed.taught == plain.taught
    assert set(kinds) == {"facts", "half", "benign"}


@pytest.mark.parametrize("kind", ["half", "benign"])
def test_lessons_that_cannot_be_made_are_refused(made: Toy, kind: str) -> None:
    forget = made.data.streams["forget"]
    alone = [row for row in forget if row.entity == forget[0].entity]
    with pytest.raises(DataError, match=rf"Relearning \({kind}\) must have rows to teach"):
        relearner(made, [kind], rows=alone if kind == "half" else forget, others=[] if kind == "benign" else None)
