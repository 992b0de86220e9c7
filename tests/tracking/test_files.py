import json
import os

import numpy as np
import pytest
import torch

from unlearn.tracking.files import append_lines, dump_json, read_json, read_lines, write_atomic


def test_write_atomic_replaces_whole_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, "två")
    assert path.read_text(encoding="utf-8") == "två"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "old")

    def broken(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_strict_and_takes_numpy_and_torch():
    text = dump_json({"a": np.float32(0.5), "b": torch.tensor(2), "c": [np.arange(2), float("nan")], "d": {3, 1}, "e": True, "f": None})

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    assert json.loads(text, parse_constant=refuse) == {"a": 0.5, "b": 2, "c": [[0, 1], "nan"], "d": [1, 3], "e": True, "f": None}


def test_a_torn_last_line_costs_one_row_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, [{"n": 1}, {"n": 2}])
    with path.open("a") as file:
        file.write('{"n": 3, "te')
    append_lines(path, [{"n": 4}])
    append_lines(path, [])
    assert read_lines(path) == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_reading_what_is_not_there(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"a": ')
    assert read_json(tmp_path / "none.json") == read_json(tmp_path / "list.json") == read_json(tmp_path / "torn.json") == {}
    assert read_lines(tmp_path / "none.jsonl") == []
