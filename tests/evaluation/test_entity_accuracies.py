"""Accuracy by entity."""

from __future__ import annotations

from dataclasses import replace

from tests.toys import toy_data
from unlearn.evaluation.answers import entity_accuracies
from unlearn.tracking.files import read_json
from unlearn.tracking.rundir import ENTITIES, RunDirectory


def test_by_hand(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = toy_data()
    rows = data.evaluation["forget"]  # three questions each about two people
    assert [row.entity for row in rows] == ["Ann Lee"] * 3 + ["Bob Moss"] * 3
    texts = [rows[0].answer, f"{rows[1].answer}, of course.", "wrong", "wrong", "wrong", rows[5].answer]
    evaluation = {"forget": rows, "retain_unseen": (replace(rows[0], accepted_answers=("Rome",)),), "other": rows, "unknown": rows}
    found = entity_accuracies(evaluation, {"forget": texts, "retain_unseen": ["Rome"], "other": texts})
    assert found == {"forget/accuracy": {"Ann Lee": 2 / 3, "Bob Moss": 1 / 3}, "retain/accuracy_unseen": {"Ann Lee": 1.0}}
    run = RunDirectory.create(tmp_path, "x")
    run.write_entities(found)
    assert read_json(run.path / ENTITIES) == found
    assert ENTITIES in [path.name for path in run.artifacts()]
