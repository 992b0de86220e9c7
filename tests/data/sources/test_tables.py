"""Tables of benchmarks in the formats in which they come."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from unlearn.data.sources.tables import Tables, checked, fields, read_json, read_rows
from unlearn.errors import DataError

ROWS = [{"text": "Riga"}, {"text": "Été"}]


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "b.json").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    (tmp_path / "c.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    assert [read_rows(path) for path in sorted(tmp_path.iterdir())] == [ROWS] * 4


def test_csv_keeps_quoted_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"two\nlines",b\nc,"d, e"\n')
    assert read_rows(tmp_path / "a.csv") == [["two\nlines", "b"], ["c", "d, e"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, ", "must be a JSON document; found '[1, '"),
        ("a.json", '{"a": 1}', "must be a list of rows; found dict."),
        ("a.parquet", "x", "must be a readable parquet file; found "),
        ("a.jsonl", '{"a": 1}\n{', "must be a JSON object; found '{'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.json must be a readable UTF-8 text file; found "):
        read_json(tmp_path / "none.json")


def test_wrong_rows_are_listed_up_to_five() -> None:
    with pytest.raises(DataError) as error:
        checked([{"text": "x"}, *[{"text": 3}] * 7, "no"], fields("text"), "the table")
    lines = str(error.value).split("\n")
    assert lines[0] == "the table, row 1: text must be a text; found 3."
    assert len(lines) == 6
    assert lines[-1] == "3 more rows of the table are wrong."


def test_the_first_pattern_with_files_wins_and_files_are_joined(tmp_path: Path) -> None:
    for name, text in (("b-1", "2"), ("b-0", "1"), ("c", "3")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"text": text}]))
    tables = Tables("Bench", str(tmp_path), "org/bench", None)
    assert tables.read(("a*.json", "b*.json", "c.json"), "x", "test", fields("text")) == [{"text": "1"}, {"text": "2"}]
    assert tables.read(("a.json",), "x", "test", fields("text"), required=False) == []
    with pytest.raises(DataError) as error:
        tables.read(("a.json", "z.json"), "x", "test", fields("text"))
    assert str(error.value) == (
        f"data.root must hold Bench's a.json (from https://huggingface.co/datasets/org/bench); found no {tmp_path}/a.json."
    )


def test_the_hub_gives_the_same_rows_as_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder laid out like a hub repository is read through the same client as the hub itself."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    (hub / "qa").mkdir(parents=True)
    (hub / "qa" / "test.json").write_text(json.dumps(ROWS))
    files = "  data_files:\n  - split: test\n    path: qa/test.json\n"
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: qa\n{files}---\n")
    tables = Tables("Bench", None, str(hub), None)
    assert tables.read((), "qa", "test", fields("text")) == ROWS
    assert tables.read((), "none", "test", fields("text"), required=False) == []
    assert tables.read((), "qa", "train", fields("text"), required=False) == []
    with pytest.raises(DataError, match="data.hub must give Bench's qa/train, or data.root a folder with its files; "):
        tables.read((), "qa", "train", fields("text"))
    with pytest.raises(DataError, match="hub qa/test, row 0: answer must be a text; found nothing."):
        tables.read((), "qa", "test", fields("answer"))
