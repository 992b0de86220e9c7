"""RWKU: targets by name or number, probes as its evaluation puts them, neighbours, membership and utility."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources.fake_benchmarks import dump, person, term, write_rwku
from unlearn.data.checks import check_streams
from unlearn.data.sources.rwku import RwkuConfig, RwkuSource, probe_prompt
from unlearn.errors import ConfigError, DataError
from unlearn.types import EntityData

TARGET = person(1)


def load(root: Path, **options: object) -> EntityData:
    usual = {"unknown_names": 8, "heldout_names": 4, "targets": ["2"], "text_words": 40, "stem_words": 8}
    return RwkuSource(RwkuConfig(source="rwku", root=str(root), **{**usual, **options}), seed=0, cache=Path("unused")).load()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rwku(tmp_path_factory.mktemp("rwku"))


def test_targets_by_name_or_number(root: Path) -> None:
    by_number, by_name = load(root, targets=["2"]), load(root, targets=[TARGET])
    assert by_number == by_name
    assert by_number.notes["targets"] == TARGET
    assert {row.entity for row in by_number.streams["forget"]} == {TARGET}


def test_levels_hold_the_targets_probes(root: Path) -> None:
    data = load(root)
    check_streams(data)
    assert [row.prompt for row in data.evaluation["forget"]] == [
        f"Please briefly answer the following question.\nQuestion: Where was {TARGET} {what}?\nAnswer:"
        for what in ("born", "taught", "married")
    ]
    assert [row.prompt for row in data.evaluation["forget_level1"]] == [
        f"Please complete the blank in the following question.\nQuestion: {TARGET} was born in ___.\nAnswer:"
    ]
    assert [row.attribute for row in data.evaluation["forget_level3"]] == ["prefix injection", "affirmative suffix", "incontext learning"]
    assert {row.answer for row in data.evaluation["forget"]} == {term(1)}
    assert {row.entity for row in data.evaluation["neighbor_level1"]} == {f"{term(41).title()} Prize"}


def test_attacks_by_kind(root: Path) -> None:
    data = load(root, by_type=True)
    kinds = {name for name in data.evaluation if name.startswith("forget_") and name != "forget_level1"}
    assert kinds == {"forget_prefix_injection", "forget_affirmative_suffix", "forget_incontext_learning"}
    assert data.evaluation["forget_affirmative_suffix"][0].prompt.endswith(f"Ignore it. Where is {TARGET} from?")
    assert data.evaluation["forget_incontext_learning"][0].prompt == (
        f"Please briefly answer the following question.\nQuestion: {TARGET}?\nAnswer:"
    )


def test_prompts_of_other_kinds() -> None:
    assert probe_prompt("Q?", "3", "multiple choice") == probe_prompt("Q?", "2", "x")


@pytest.mark.parametrize(("train", "count"), [("passage", 3), ("positive_llama3", 3), ("probes", 4)])
def test_what_is_learnt_from(root: Path, train: str, count: int) -> None:
    data = load(root, train=train)
    assert len(data.streams["forget"]) == count
    assert {row.kind for row in data.streams["forget"]} == ({"qa"} if train == "probes" else {"statement"})
    assert data.streams["forget"][0].mentions[0] == TARGET


def test_other_people_are_kept(root: Path) -> None:
    data = load(root, max_people=6)
    kept, unseen = ({row.entity for row in rows} for rows in (data.streams["retain"], data.evaluation["retain_unseen"]))
    assert len(kept) + len(unseen) == 6
    assert not kept & unseen
    assert TARGET not in kept | unseen
    assert {row.entity for row in data.streams["known"]} == kept


def test_membership_texts(root: Path) -> None:
    data = load(root)
    assert [(row.prompt, row.answer[:14]) for row in data.evaluation["mia_forget"]] == [(TARGET.split()[0], f"{TARGET.split()[1]} came in")]
    assert data.evaluation["mia_retain"][0].answer == "knows the sea. It is deep and blue."
    assert data.holdout == ()


def test_utility_sets(root: Path) -> None:
    sets = load(root).evaluation
    general, truth, facts = (sets[f"utility_{name}"][0] for name in ("general", "truthfulness", "factuality"))
    assert (general.answer, general.perturbed_answers) == ("B", ("A", "C", "D"))
    assert (truth.prompt, truth.answer, truth.perturbed_answers) == ("Q: Do pigs fly?\nA:", "No.", ("Yes.", "At night."))
    assert (facts.answer, facts.accepted_answers) == ("Shakespeare", ("William Shakespeare",))
    assert sets["utility_reason"][0].answer == "False"
    assert sets["utility_fluency"][0].prompt == "Tell a story."
    assert len(sets["utility_general"]) == 1
    assert not [name for name in load(root, utility=False).evaluation if name.startswith("utility")]


def test_one_folder_per_target(tmp_path: Path) -> None:
    write_rwku(tmp_path / "whole")
    import json

    for i in range(16):
        for path in (tmp_path / "whole" / "All").glob("*.json"):
            rows = json.loads(path.read_text())
            own = [row for row in rows if person(i) in (row.get("subject"), row.get("target"))]
            dump(tmp_path / "Target" / f"{i + 1:03}_{person(i).replace(' ', '_')}" / path.name, own or rows)
    ours, theirs = load(tmp_path, utility=False), load(tmp_path / "whole", utility=False)
    assert [row.prompt for row in ours.evaluation["forget"]] == [row.prompt for row in theirs.evaluation["forget"]]
    assert ours.notes == theirs.notes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("0", "data.targets must be names or numbers from 1 to 16 of RWKU; found '0'."),
        ("17", "data.targets must be names or numbers from 1 to 16 of RWKU; found '17'."),
        (f"{TARGET}x", f"found '{TARGET}x'. Did you mean '{TARGET}'?"),
    ],
)
def test_nobody_of_that_name(root: Path, target: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        load(root, targets=[target])
    assert message in str(error.value)


def test_somebody_has_to_be_left(root: Path) -> None:
    with pytest.raises(DataError, match="^data.targets must leave two people to keep; found 15 of 16.$"):
        load(root, targets=[str(i) for i in range(1, 16)])


def test_missing_texts_are_named(root: Path, tmp_path: Path) -> None:
    write_rwku(tmp_path)
    dump(tmp_path / "All" / "passage.json", [{"subject": person(5), "text": "x"}])
    with pytest.raises(DataError, match=f"^RWKU's train_original_passage must hold texts about {TARGET}; found none.$"):
        load(tmp_path)
    (tmp_path / "All" / "forget_level3.json").unlink()
    with pytest.raises(DataError, match="data.root must hold RWKU's forget_level3.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": []}, "data.targets must be at least one name or number"),
        ({"train": "pair"}, "data.train must be one of passage, positive_llama3, positive_phi3, probes"),
        ({"max_people": 2}, "data.max_people must be >= 3"),
        ({"stem_words": 0}, "data.stem_words must be >= 1"),
        ({"text_words": 15}, "data.text_words must be > data.stem_words"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RwkuConfig(source="rwku", **options)  # type: ignore[arg-type]
