"""``unlearn label``: asking, counting, going on, refusing to mix; on tiny models, and whom the embedded world's model knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.sources.fake_benchmarks import write_popqa, write_wikidata
from tests.mini import make_mini
from unlearn.cli import main
from unlearn.cli.label import configuration
from unlearn.config.load import load_config
from unlearn.data.labels import LABELS, LabelFile, Rule
from unlearn.data.sources.popqa import PopqaConfig, PopqaSource
from unlearn.errors import DataError
from unlearn.label import SAVE_EVERY, facts_of, label, read_any

SHORT = Rule(samples=4, hits=2, max_new_tokens=4)
FACTS = [
    {"entity": name, "attribute": what, "question": f"{what} of {name}?", "answers": ["right"]}
    for name in ("Ann Lee", "Bob Moss", "Eve Stone", "Finn Hale")
    for what in ("birthplace", "job", "language")
]
RIGHT = {"Ann Lee": (4, 2, 0), "Bob Moss": (3, 1, 0), "Eve Stone": (1, 1, 1), "Finn Hale": (0, 0, 0)}
"""Right answers of the four samples, by attribute."""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Entities in the order in which they are asked about; the model's answers are those of ``RIGHT``."""
    names: list[str] = []

    def generate(lm: object, tokenizer: Any, prompts: list[list[int]], *_: object, **__: object) -> list[list[int]]:
        texts = [tokenizer.decode(ids) for ids in prompts]
        name = next(name for name in RIGHT if name in texts[0])
        names.append(name)
        assert len(texts) == 12
        assert texts[0].endswith(f"Question: birthplace of {name}?\nAnswer:")
        said = [("right" if i < count else "wrong") for count in RIGHT[name] for i in range(4)]
        return [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in said]

    monkeypatch.setattr("unlearn.models.forward.generate", generate)
    return names


def config(mini: dict[str, Any], **changed: Any) -> Any:
    return load_config({**mini, **changed})


def test_labels_follow_from_the_answers(mini: dict[str, Any], facts: Path, asked: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = label(config(mini), tmp_path / "labels.json", facts, SHORT, shown=lambda *at: seen.append(at))
    made = LabelFile.read(tmp_path / "labels.json")
    assert {name: entry["label"] for name, entry in made.entities.items()} == {
        "Ann Lee": "known",
        "Bob Moss": "between",
        "Eve Stone": "unknown",
        "Finn Hale": "unknown",
    }
    assert made.entities["Ann Lee"]["hits"] == {"birthplace": 4, "job": 2, "language": 0}
    assert found.counts == {"known": 1, "between": 1, "unknown": 2}
    assert found.attributes == {"birthplace": (4, 2), "job": (4, 1), "language": (4, 0)}
    assert asked == list(RIGHT)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert made.settings["rule"] == {"samples": 4, "hits": 2, "known": 2, "temperature": 1.0, "max_new_tokens": 4}
    assert (made.settings["seed"], made.settings["question_format"]) == (0, "Question: {question}\nAnswer:")
    assert len(made.settings["model"]) == 16


def test_what_is_labelled_is_not_asked_again(mini: dict[str, Any], facts: Path, asked: list[str], tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    label(config(mini), out, facts, SHORT)
    whole = LabelFile.read(out)
    part = LabelFile(whole.settings, {name: whole.entities[name] for name in ("Ann Lee", "Eve Stone")})
    part.write(out)
    asked.clear()
    found = label(config(mini), out, facts, SHORT)
    assert asked == ["Bob Moss", "Finn Hale"]
    assert found.before == 2
    assert LabelFile.read(out).entities == whole.entities


def test_an_interrupted_run_leaves_what_it_has(mini: dict[str, Any], facts: Path, asked: list[str], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(config(mini), tmp_path / "labels.json", facts, SHORT, shown=stop)
    assert list(LabelFile.read(tmp_path / "labels.json").entities) == ["Ann Lee", "Bob Moss"]
    assert SAVE_EVERY > 2


@pytest.mark.parametrize(
    ("changed", "rule", "what"),
    [
        ({"seed": 1}, SHORT, "seed 0, now 1"),
        ({}, Rule(samples=4, hits=3, max_new_tokens=4), "rule {"),
        ({"data": {}}, SHORT, "question_format"),
    ],
)
def test_labels_of_different_makes_are_not_mixed(
    mini: dict[str, Any], facts: Path, asked: list[str], tmp_path: Path, changed: dict[str, Any], rule: Rule, what: str
) -> None:
    out = tmp_path / "labels.json"
    label(config(mini), out, facts, SHORT)
    other = dict(changed)
    if "data" in other:
        other["data"] = {**mini["data"], "question_format": "Question: {question}\nAnswer: "}
    with pytest.raises(DataError) as error:
        label(config(mini, **other), out, facts, rule)
    assert str(error.value).startswith(f"--out must be a new file or one made in the same way; {out} has {what}")
    assert str(error.value).endswith("--force replaces it.")
    label(config(mini, **other), out, facts, rule, force=True)
    assert set(LabelFile.read(out).entities) == set(RIGHT)


def test_draws_follow_from_seed_and_name_alone(mini: dict[str, Any], facts: Path, tmp_path: Path) -> None:
    """A random model gives the same counts whether it is asked about all entities at once or about the last one alone."""
    easy = [{**fact, "answers": list("aeiou0123456789"), "rule": "part"} for fact in FACTS]
    facts.write_text("".join(json.dumps(fact) + "\n" for fact in easy))
    rule = Rule(samples=6, hits=2, max_new_tokens=3)
    label(config(mini), tmp_path / "all.json", facts, rule)
    facts.write_text("".join(json.dumps(fact) + "\n" for fact in easy[-3:]))
    label(config(mini), tmp_path / "one.json", facts, rule)
    label(config(mini, seed=1), tmp_path / "seed.json", facts, rule)
    hits = [LabelFile.read(tmp_path / f"{name}.json").entities["Finn Hale"]["hits"] for name in ("all", "one", "seed")]
    assert hits[0] == hits[1]
    assert hits[1] != hits[2]
    assert 0 < sum(hits[0].values()) < 18


def test_files_of_facts_are_told_apart(mini: dict[str, Any], facts: Path, tmp_path: Path) -> None:
    write_popqa(tmp_path)
    write_wikidata(tmp_path)
    assert {fact.rule for fact in read_any(tmp_path / "city.json")} == {"name", "population", "metres", "coordinates"}
    assert {fact.attribute for fact in read_any(tmp_path / "popqa_small.jsonl")} == {"occupation", "place of birth"}
    assert len(read_any(facts)) == 12
    with pytest.raises(DataError, match="^--entities must be a file; found none at "):
        read_any(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="^--entities must be given, since the source jsonl holds no facts; found none.$"):
        facts_of(config(mini), None)
    wikidata = {**mini, "data": {"source": "wikidata", "root": str(tmp_path), "entity_type": "song"}}
    assert facts_of(load_config(wikidata), None) == read_any(tmp_path / "song.json")


def test_from_the_command_to_a_source(mini: dict[str, Any], facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({key: mini[key] for key in ("data", "model", "trainer")}))
    write_popqa(tmp_path)
    out = tmp_path / "labels.json"
    words = ["label", str(tmp_path / "run.yaml"), "--entities", str(tmp_path / "popqa_small.jsonl"), "--out", str(out)]
    with pytest.raises(SystemExit) as ending:
        main([*words, "--samples", "2", "--hits", "2", "--known", "1", "--max-new-tokens", "2"])
    assert not ending.value.code
    said = capsys.readouterr().out
    assert "unknown" in said
    assert "place of birth" in said
    assert f"data.labels={out}" in said
    made = LabelFile.read(out)
    assert {entry["label"] for entry in made.entities.values()} <= set(LABELS)
    assert len(made.entities) == 60
    for i, entry in enumerate(made.entities.values()):
        entry["label"] = "known" if i % 2 else "unknown"
    made.write(out)
    source = PopqaSource(PopqaConfig(source="popqa", root=str(tmp_path), labels=str(out), forget_entities=2), seed=0, cache=tmp_path)
    known = {name for name, entry in made.entities.items() if entry["label"] == "known"}
    assert {row.entity for row in source.load().streams["known"]} < known


def test_wrong_options_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["label", "data.source=jsonl", "data.path=x", "--samples", "2"])
    assert ending.value.code == 2
    assert capsys.readouterr().err == "error: hits must be at most the number of samples, 2; found 3.\n"
    assert configuration(["data.source=popqa", "seed=4"]).seed == 4


@pytest.mark.slow
def test_the_worlds_model_knows_its_people_and_no_strangers(world, world_cache: Path, tmp_path: Path) -> None:  # noqa: ANN001
    known = world.data.evaluation["retain_unseen"]
    names = list(dict.fromkeys(row.entity for row in known))[:6]
    strangers = list(dict.fromkeys(row.entity for row in world.data.evaluation["unknown"]))[:6]
    lines = []
    for name, stranger in zip(names, strangers, strict=True):
        for row in (row for row in known if row.entity == name):
            fact = {"entity": name, "attribute": row.attribute or row.template, "question": row.prompt, "answers": [row.answer]}
            lines += [fact, {**fact, "entity": stranger, "question": row.prompt.replace(name, stranger)}]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = configuration(["data.source=world", f"cache={world_cache}", "trainer.progress_bar=false", "trainer.threads=1"])
    label(settings, tmp_path / "labels.json", path, Rule(max_new_tokens=8))
    made = LabelFile.read(tmp_path / "labels.json")
    assert [made.label(name) for name in names] == ["known"] * 6
    assert [made.label(name) for name in strangers] == ["unknown"] * 6
