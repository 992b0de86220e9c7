"""JSON-lines files with faults in them."""

from __future__ import annotations

import pytest

from unlearn.data.records import read_records, read_texts, text_problem
from unlearn.errors import DataError


def problem(record):
    return text_problem(record, "q")


def test_good_lines_in_order_with_blank_ones_between(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"q": "é\u2028x"}\n\n  \n{"q": "2", "other": 1}\r\n', encoding="utf-8")
    assert read_records(path, problem) == [{"q": "é\u2028x"}, {"q": "2", "other": 1}]


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "1"}\n{"q": 3}\n[1]\n{"q": "x"\n{}\n{"q": " "}\n')
    with pytest.raises(DataError) as error:
        read_records(path, problem)
    assert str(error.value).splitlines() == [
        f"{path}:2 q must be a text; found 3.",
        f"{path}:3 must be a JSON object; found '[1]'.",
        f"{path}:4 must be a JSON object; found '{{\"q\": \"x\"' (Expecting ',' delimiter).",
        f"{path}:5 q must be a text; found nothing.",
        f"{path}:6 q must be a text; found ' '.",
    ]


def test_ten_bad_lines_are_listed_and_the_others_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("1\n" * 13)
    with pytest.raises(DataError) as error:
        read_records(path, problem)
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == f"3 more lines of {path} are wrong."


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_file(tmp_path, content):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}(:1)? must be a readable UTF-8 text file; found .+\.$"):
        read_records(path, problem)


def test_texts_are_stripped_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" One. \n\nTwo.\n", encoding="utf-8")
    assert read_texts(path) == ("One.", "Two.")
