from pathlib import Path

from unlearn.report.names import base_of, labels_of, number, original, plain, study_of
from unlearn.tracking.reader import RunRecord


def record(name, **more):
    return RunRecord(name=name, path=Path(name), **more)


def test_labels_leave_out_what_all_names_share():
    runs = [record("study/a/npo"), record("study/a/rmu"), record("study/a/deep/x")]
    assert study_of(runs) == "study/a"
    assert labels_of(runs) == ["npo", "rmu", "deep/x"]


def test_labels_of_unrelated_and_equal_names():
    assert labels_of([record("a/npo"), record("b/npo")]) == ["a/npo", "b/npo"]
    assert study_of([record("a/npo"), record("b/npo")]) == ""
    assert labels_of([record("npo"), record("npo")]) == ["npo", "npo (2)"]
    assert labels_of([record("npo")]) == ["npo"]
    assert labels_of([]) == []
    assert study_of([]) == ""


def test_only_one_run_can_be_the_original_model():
    none = {"method": {"name": "none"}}
    base, other = record("base", config=none), record("x", config={"method": {"name": "npo"}})
    assert base_of([other, base]) is base
    assert base_of([base, base]) is None
    assert base_of([other]) is None


def test_the_runs_own_base_value_goes_first():
    run = record("x", results={"retain/accuracy_base": 0.9})
    base = record("base", results={"retain/accuracy": 0.8, "forget/accuracy": 1.0})
    assert original(run, "retain/accuracy", base) == 0.9
    assert original(run, "forget/accuracy", base) == 1.0
    assert original(run, "forget/accuracy", None) is None


def test_plain_text_and_numbers():
    assert plain("\u202ea\x00b\tc") == "ab c"
    assert [number(x) for x in (0.0, -1.5, 1e20, float("nan"), 812.4)] == ["0", "-1.500", "100,000,000,000,000,000,000", "nan", "812"]
