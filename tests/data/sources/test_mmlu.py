"""MMLU: lettered questions, terms, files in every form, and the choice that a model makes among the letters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sources.fake_benchmarks import write_mmlu
from tests.data.sources.shared import shared
from tests.data.tokenizers_zoo import byte_level
from tests.tiny import tiny_llama, tiny_tokenizer
from unlearn.data.checks import check_streams
from unlearn.data.entities import occurrences
from unlearn.data.reader import Reader
from unlearn.data.sources.choices import choice_problem, choice_row
from unlearn.data.sources.mmlu import SUBJECTS, MmluConfig, MmluSource, read_mmlu
from unlearn.data.sources.tables import Tables
from unlearn.errors import ConfigError, DataError
from unlearn.evaluation.answers import measure_answers
from unlearn.functional.choice import LETTERS, choice_correct, choice_prompt, letter_scores

SMALL = {"unknown_names": 12, "heldout_names": 6}


def source(root: Path, seed: int = 0, **options: object) -> MmluSource:
    config = MmluConfig(source="mmlu", root=str(root), **{**SMALL, **options})  # type: ignore[arg-type]
    return MmluSource(config, seed=seed, cache=Path("unused"))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmlu(tmp_path_factory.mktemp("mmlu"))


def test_rows_are_lettered_questions(fake: Path) -> None:
    data = source(fake).load()
    row = next(row for row in data.streams["forget"] if row.row_id == 1)
    header = "The following are multiple choice questions (with answers) about virology.\n\n"
    question = f"Which property does {row.entity} have?"
    assert row.prompt == header + choice_prompt(question, ["It is red.", "It is blue.", "It is warm.", "It is cold."])
    assert (row.answer, row.perturbed_answers, row.attribute, row.kind) == ("B", ("A", "C", "D"), "virology", "qa")
    plain = next(row for row in source(fake, header=False).load().streams["forget"] if row.row_id == 1)
    assert header + plain.prompt == row.prompt


def test_subjects_are_divided(fake: Path) -> None:
    data = source(fake, forget=["anatomy", "virology"]).load()
    check_streams(data)
    forget = [*data.streams["forget"], *data.evaluation["forget_paraphrased"]]
    assert sorted({row.attribute for row in forget}) == ["anatomy", "virology"]
    assert len(forget) == 24
    assert not {row.entity for row in data.streams["forget"]} & {row.entity for row in data.evaluation["forget_paraphrased"]}
    kept = [*data.streams["retain"], *data.evaluation["retain_unseen"]]
    assert {row.attribute for row in kept} == {"philosophy", "sociology"}
    assert not {row.entity for row in data.streams["retain"]} & {row.entity for row in data.evaluation["retain_unseen"]}


def test_files_of_every_form_give_the_same_rows(fake: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    records = read_mmlu(Tables("MMLU", str(fake), "x", None), "test")
    assert len(records) == 48
    assert [record["subject"] for record in records[::12]] == sorted(["virology", "anatomy", "philosophy", "sociology"])
    (tmp_path / "all").mkdir()
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "all" / "test-00000-of-00001.parquet")
    for subject in ("virology", "anatomy", "philosophy", "sociology"):
        (tmp_path / "one" / subject).mkdir(parents=True)
        rows = [{k: v for k, v in record.items() if k != "subject"} for record in records if record["subject"] == subject]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "one" / subject / "test-0.parquet")
    assert read_mmlu(Tables("MMLU", str(tmp_path), "x", None), "test") == records
    assert read_mmlu(Tables("MMLU", str(tmp_path / "one"), "x", None), "test") == records


def test_long_questions_are_left_out_and_counted(fake: Path) -> None:
    data = source(fake, max_words=34).load()
    assert data.notes["questions left out because they are too long"] == "0"
    with pytest.raises(DataError, match="MMLU must offer two entities or more"):
        source(fake, max_words=10).load()


def test_real_questions(tmp_path: Path) -> None:
    root, real = shared("mmlu_mini", write_mmlu, tmp_path)
    data = source(root, forget=["virology", "anatomy"]).load()
    check_streams(data)
    records = read_mmlu(Tables("MMLU", str(root), "x", None), "test")
    if real:
        assert len(records) == 570
        assert [record["subject"] for record in records[::10]] == list(SUBJECTS)
        assert records[0]["question"].startswith("Find the degree for the given field extension")
        assert len(data.streams["known"]) > 300
    assert len(data.streams["forget"]) + len(data.evaluation["forget_paraphrased"]) == (20 if real else 24)
    assert all(row.mentions for row in data.streams["known"])
    for row in data.streams["forget"]:
        assert not row.mentions or occurrences(row.prompt, row.mentions[0])


def test_a_small_table_without_subject_names(tmp_path: Path) -> None:
    n = len(SUBJECTS) * 2
    columns = {"questions": [f"Q{i}?" for i in range(n)], "choices": [["a", "b", "c", "d"]] * n, "answers": [i % 4 for i in range(n)]}
    path = tmp_path / "mmlu_2_per_subject.json"
    path.write_text(json.dumps(columns))
    records = read_mmlu(Tables("MMLU", str(tmp_path), "x", None), "test", ["virology"])
    first = 2 * SUBJECTS.index("virology")
    assert [record["question"] for record in records] == [f"Q{first}?", f"Q{first + 1}?"]
    path.write_text(json.dumps({**columns, "answers": [0]}))
    with pytest.raises(
        DataError, match="must hold lists questions, choices and answers with as many questions of each of 57 subjects; found"
    ):
        read_mmlu(Tables("MMLU", str(tmp_path), "x", None), "test")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"question": "Q", "choices": ["a"], "answer": 0}, "choices must be a list of 2 to 26 texts; found ['a']"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "A"}, "answer must be the number of one of 2 choices; found 'A'"),
        ({"choices": ["a", "b"], "answer": 0}, "question must be a text; found None"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 1}, ""),
    ],
)
def test_wrong_records(record: dict[str, object], fault: str) -> None:
    assert choice_problem(record) == fault


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget": ["virolgy"]}, "data.forget must be one of .*; found 'virolgy'. Did you mean 'virology'?"),
        ({"forget": []}, "data.forget must be at least one subject"),
        ({"forget": ["anatomy"], "retain": ["anatomy"]}, "data.retain must be other subjects than data.forget"),
        ({"split": "train"}, "data.split must be one of test, validation, dev"),
        ({"max_words": 0}, "data.max_words must be >= 1"),
        ({"unseen_share": float("nan")}, r"data.unseen_share must be in \(0, 1\)"),
        ({"train_rows": 0}, "data.train_rows must be >= 1"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MmluConfig(source="mmlu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), byte_level()], ids=["tiny", "byte_level"])
def test_the_choice_is_made_by_the_letters_alone(fake: Path, tokenizer: object) -> None:
    """``choice_accuracy`` is what the logits of the letters say at the last token of the prompt."""
    made = source(fake)
    rows = list(made.load().evaluation["forget"])
    lm = tiny_llama(seed=3)
    reader = Reader(
        tokenizer=tokenizer, prompt_format=made.prompt_format, refusals=("x",), max_length=1024, batch_size=4, max_new_tokens=1
    )  # type: ignore[arg-type] # fmt: skip
    tokens = reader.tokens(rows)
    assert {len(row.ids) - row.answer_start for row in tokens} == {1}
    letter_ids = {row.answer: token.ids[-1] for row, token in zip(rows, tokens, strict=True)}
    assert len(set(letter_ids.values())) == len(letter_ids) == 4
    scores, right = [], []
    for row, token in zip(rows, tokens, strict=True):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([token.ids[: token.answer_start]])).logits[:, -1]
        scores.append(letter_scores(logits, [letter_ids[letter] for letter in LETTERS[:4]]))
        right.append(LETTERS.index(row.answer))
    expected = choice_correct(torch.cat(scores), torch.tensor(right)).numpy()
    found = measure_answers(lm, rows, reader).values["choice_accuracy"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < expected.mean() < 1


def test_a_row_without_a_header() -> None:
    row = choice_row(7, {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2}, "us_foreign_policy", header=True)
    assert row.prompt.startswith("The following are multiple choice questions (with answers) about us foreign policy.\n\nWhich?")
    assert (row.answer, row.perturbed_answers) == ("C", ("A", "B"))
