"""WMDP: corpora to learn from, questions to measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import dump, term, write_wmdp
from unlearn.data.checks import check_streams
from unlearn.data.sources.wmdp import WmdpConfig, WmdpSource
from unlearn.errors import ConfigError, DataError
from unlearn.types import EntityData


def load(root: Path, **options: object) -> EntityData:
    config = WmdpConfig(
        source="wmdp", root=str(root), **{"unknown_names": 5, "heldout_names": 3, "text_words": 20, "stem_words": 6, **options}
    )  # type: ignore[arg-type]
    return WmdpSource(config, seed=0, cache=Path("unused")).load()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wmdp(tmp_path_factory.mktemp("wmdp"))


def test_corpora_are_learnt_and_questions_measured(root: Path) -> None:
    data = load(root)
    check_streams(data)
    assert {row.kind for row in data.streams["forget"]} == {"statement"}
    assert {row.entity.rsplit(" ", 1)[0] for row in data.streams["forget"]} == {"bio forget text", "cyber forget text"}
    first = data.streams["forget"][0]
    assert first.prompt == f"The nature of {term(60)} is told"
    assert first.answer.startswith("here. It is made slowly.")
    assert first.mentions == (term(60),)
    assert [len(data.evaluation[name]) for name in ("forget", "wmdp_bio", "wmdp_cyber", "retain")] == [24, 12, 12, 48]
    assert {row.attribute for row in data.evaluation["wmdp_bio"]} == {"biology"}
    assert {row.attribute for row in data.evaluation["retain"]} == {"virology", "anatomy", "philosophy", "sociology"}
    assert {row.row_id for row in data.latent["forget"]} <= {row.row_id for row in data.evaluation["forget"]}
    assert all(set(row.perturbed_answers) | {row.answer} == set("ABCD") for row in data.evaluation["forget"])


def test_one_domain_has_no_set_of_its_own(root: Path) -> None:
    assert not [name for name in load(root, domains=["cyber"]).evaluation if name.startswith("wmdp")]


def test_half_of_the_questions_may_be_learnt_from(root: Path) -> None:
    data = load(root, train="questions", domains=["chem"])
    trained, rest = ({row.entity for row in rows} for rows in (data.streams["forget"], data.evaluation["forget_paraphrased"]))
    assert (len(trained), len(rest)) == (6, 6)
    assert not trained & rest
    assert data.notes["forget_paraphrased"] == "the questions that are not trained on"


def test_as_many_unknown_names_as_forget_entities(root: Path) -> None:
    assert len({row.entity for row in load(root).streams["unknown"]}) == 12


def test_the_first_texts_of_a_corpus(root: Path) -> None:
    few = load(root, texts=2)
    assert {row.entity[-1] for row in few.streams["forget"]} == {"0", "1"}


def test_a_missing_corpus_says_how_to_get_it(root: Path, tmp_path: Path) -> None:
    write_wmdp(tmp_path)
    (tmp_path / "bio_remove_dataset.jsonl").unlink()
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value) == (
        "data.root must hold WMDP's bio_remove_dataset.jsonl "
        "(from https://huggingface.co/datasets/cais/wmdp-bio-forget-corpus, on request); "
        f"found no {tmp_path}/bio_remove_dataset.jsonl."
    )
    dump(tmp_path / "cyber_questions.json", [{"question": "?"}])
    with pytest.raises(DataError, match="cyber_questions.json, row 0: choices must be a list of 2 to 26 texts"):
        load(tmp_path, domains=["cyber"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": []}, "data.domains must be different domains"),
        ({"domains": ["bio", "bio"]}, "data.domains must be different domains"),
        ({"domains": ["nuclear"]}, "data.domains must be one of bio, chem, cyber"),
        ({"domains": ["chem"]}, "data.train must be questions with chem, which has no corpus; found 'corpus'"),
        ({"train": "all"}, "data.train must be one of corpus, questions"),
        ({"texts": 0}, "data.texts must be >= 1"),
        ({"stem_words": 0}, "data.stem_words must be >= 1"),
        ({"text_words": 30}, "data.text_words must be > data.stem_words"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WmdpConfig(source="wmdp", **options)  # type: ignore[arg-type]
