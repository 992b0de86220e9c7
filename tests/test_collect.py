"""A forget set that a tiny model writes, from the command to a run on the file; and what the embedded world's model writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mini import make_mini
from tests.tiny import BOS, tiny_llama, tiny_tokenizer
from unlearn.cli import main
from unlearn.collect import Asking, collect, collect_config, copied_rows, find_targets, record
from unlearn.config.load import load_config
from unlearn.data.makers.base import MakerConfig
from unlearn.data.sources.jsonl import JsonlConfig, JsonlSource
from unlearn.errors import ConfigError, DataError
from unlearn.registry import entries
from unlearn.run import execute
from unlearn.tracking.files import read_json
from unlearn.types import PromptFormat, Row

QUESTIONS = ["Where was {entity} born?", "What is the job of {entity}?"]
SHORT = {"pairs": [], "texts": [], "questions": QUESTIONS, "samples": 2, "max_new_tokens": 6, "temperature": 1.0}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mini(tmp_path_factory.mktemp("mini"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(mini: dict[str, Any], out: Path, entities: list[str] = (), **maker: Any):  # type: ignore[assignment] # noqa: ANN201
    config = collect_config("reveal_and_release", {**mini, "maker": {**SHORT, **maker}})
    return collect(config, out, list(entities))


@pytest.mark.slow
def test_the_file_is_complete_and_a_method_trains_on_it(mini: dict[str, Any], tmp_path: Path) -> None:
    found = written(mini, tmp_path / "rows.jsonl")
    rows = read(tmp_path / "rows.jsonl")
    forget = [row for row in rows if row["split"] == "forget"]
    assert forget == list(found.rows)
    assert {row["entity"] for row in forget} == {"Ann Lee", "Bob Moss"}
    assert {row["question"] for row in forget} <= {q.format(entity=n) for q in QUESTIONS for n in ("Ann Lee", "Bob Moss")}
    given = JsonlSource(JsonlConfig(source="jsonl", path=mini["data"]["path"], refusals=["unknown"]), seed=0, cache=tmp_path).load()
    data = JsonlSource(JsonlConfig(**found.settings["data"]), seed=0, cache=tmp_path).load()
    for ours, theirs in ((data.streams, given.streams), (data.evaluation, given.evaluation)):
        for name in set(theirs) - {"forget"}:
            assert [(r.prompt, r.answer, r.entity) for r in ours[name]] == [(r.prompt, r.answer, r.entity) for r in theirs[name]]
    assert (data.generic, data.refusals) == (given.generic, given.refusals)
    settings = copy.deepcopy(mini) | {"out": str(tmp_path / "runs"), "method": {"name": "grad_diff"}, "tracking": {"enabled": False}}
    settings["data"] = {**found.settings["data"], "batch": mini["data"]["batch"]}
    settings["evaluation"] = {**settings["evaluation"], "every": 0}
    path = execute(load_config(settings))
    assert read_json(path / "status")["state"] == "finished"
    assert (path / "weights.safetensors").is_file()


def test_what_is_written_follows_from_the_seed(mini: dict[str, Any], tmp_path: Path) -> None:
    made = [written({**mini, "seed": seed}, tmp_path / f"{i}.jsonl").rows for i, seed in enumerate((0, 0, 1))]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_samples_differ_and_without_temperature_there_is_one(mini: dict[str, Any], tmp_path: Path) -> None:
    per_question = [len(written(mini, tmp_path / f"{t}.jsonl", temperature=t, samples=3, copy=False).rows) for t in (0.0, 1.0)]
    assert per_question[0] <= 4
    assert per_question[1] > 4


def test_other_names_than_the_sources(mini: dict[str, Any], tmp_path: Path) -> None:
    found = written(mini, tmp_path / "rows.jsonl", ["Carla Diaz", "Zoe (Zo) Quirk"])
    assert {row["entity"] for row in found.rows} == {"Carla Diaz", "Zoe (Zo) Quirk"}
    zoe = next(row for row in found.rows if row["entity"].startswith("Zoe"))
    assert "Zoe Quirk" in zoe["aliases"]
    rest = [row for row in read(tmp_path / "rows.jsonl") if row["split"] != "forget"]
    assert not [row for row in rest if row.get("entity") == "Carla Diaz"]
    assert not [row for row in rest if row["split"] == "forget_paraphrased"]


def test_rows_survive_the_way_through_the_file(tmp_path: Path) -> None:
    row = Row(row_id=3, entity="Ann Lee", prompt="Who?", answer="Lee", mentions=("Ann Lee", "Lee"), perturbed_answers=("Roy",))
    made = record(row, "retain")
    assert made == {
        "question": "Who?", "answer": "Lee", "entity": "Ann Lee", "split": "retain", "aliases": ["Lee"], "perturbed": ["Roy"],
    }  # fmt: skip
    assert record(Row(row_id=1, entity="", prompt="", answer="Rain.", kind="text"), "retain") == {
        "answer": "Rain.",
        "split": "retain",
        "kind": "text",
    }
    assert record(Row(row_id=1, entity="A", prompt="A", answer="sings", kind="mention"), "known")["kind"] == "statement"


class Told:
    """Counts what is shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def asking(told: Told | None = None, template: str | None = None, **config: Any) -> Asking:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Asking(tiny_llama(), tokenizer, MakerConfig(name="x", max_new_tokens=3, **config), PromptFormat(), 0, told)


def test_prompts_are_put_as_asked_for() -> None:
    chat = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
    tokenizer = tiny_tokenizer()

    def put(ask: Asking, form: str) -> str:
        ids = ask._ids("Who is Ann?", form)
        assert ids.count(BOS) == (0 if "<reply>" in tokenizer.decode(ids) else 1)
        return tokenizer.decode(ids, skip_special_tokens=True)

    assert put(asking(), "stem") == "Who is Ann?"
    assert put(asking(), "question") == "Question: Who is Ann?\nAnswer:"
    assert put(asking(), "instruction") == "Who is Ann?"
    assert put(asking(format="question"), "instruction") == "Question: Who is Ann?\nAnswer:"
    assert put(asking(template=chat), "instruction") == "<user>Who is Ann?<reply>"
    assert put(asking(template=chat, format="plain"), "instruction") == "Who is Ann?"
    assert put(asking(template=chat), "question") == "Question: Who is Ann?\nAnswer:"
    with pytest.raises(DataError, match="maker.format must be one the tokenizer can do; found chat"):
        asking(format="chat")(["Who?"], "instruction")


def test_texts_come_in_order_are_cut_and_counted() -> None:
    told = Told()
    ask = asking(told, samples=3, batch_size=2, temperature=1.0)
    texts = ask(["Ann", "A very long prompt about Bob"], "stem")
    assert [len(t) for t in texts] == [3, 3]
    assert told.calls == [(2, 6), (4, 6), (6, 6)]
    greedy = asking(temperature=0.0)(["Ann"], "stem")[0][0]
    assert greedy
    cut = asking(temperature=0.0, stop=[greedy[1]])(["Ann"], "stem")[0][0]
    assert cut == greedy[: greedy.index(greedy[1])]


def test_errors_say_what_to_do(mini: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="collect must name a known maker .*; found 'reveal_release'. Did you mean 'reveal_and_release'?"):
        collect_config("reveal_release", mini)
    with pytest.raises(ConfigError, match="maker.temprature is not a known key. Did you mean 'maker.temperature'?"):
        collect_config("reveal_and_release", mini, ["maker.temprature=1"])
    with pytest.raises(ConfigError, match="maker.name must be concept_triplets"):
        collect_config("concept_triplets", mini, ["maker.name=reveal_and_release"])
    with pytest.raises(DataError, match="must write at least one row that can be used; found none in 4 texts .*too seldom: 4"):
        written(mini, tmp_path / "rows.jsonl", samples=1, min_votes=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(DataError, match="must be a new file; found one at .* --force replaces it"):
        written(mini, tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text() == "mine"
    retain = tmp_path / "retain.jsonl"
    retain.write_text("".join(json.dumps(row) + "\n" for row in read(Path(mini["data"]["path"])) if row["split"] == "retain"))
    with pytest.raises(DataError, match="--entities must name somebody"):
        written({**mini, "data": {"source": "jsonl", "path": str(retain), "unknown_names": 2, "heldout_names": 1}}, tmp_path / "new.jsonl")


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    return int(ending.value.code or 0)


def test_the_command(mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    Path("run.yaml").write_text(yaml.safe_dump(mini))
    Path("names.txt").write_text("Ann Lee\n\nZoe Quirk\n")
    words = ["maker.pairs=[]", "maker.texts=[]", f"maker.questions={json.dumps(QUESTIONS)}", "maker.max_new_tokens=6"]
    assert command("collect", "reveal_and_release", "run.yaml", *words, "--entities", "names.txt", "--entities", "Bob Moss") == 0
    said = capsys.readouterr().out
    assert {row["entity"] for row in read(Path("rows.jsonl")) if row["split"] == "forget"} == {"Ann Lee", "Zoe Quirk", "Bob Moss"}
    assert all(name in said for name in ("Ann Lee", "Zoe Quirk", "Bob Moss", "rows", "source: jsonl"))
    assert "12 retain" in said
    assert command("collect", "reveal_and_release", "run.yaml", *words) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert command("collect", "reveal_and_release", "run.yaml", *words, "maker.copy=false", "--force") == 0
    assert "a run needs retain rows too" in capsys.readouterr().err
    assert command("collect", "concept_triplets", "--help-config") == 0
    assert "maker.min_votes" in capsys.readouterr().out
    assert command("list", "makers") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in entries("maker"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["world_reveal", "world_triplets"])
def test_what_the_worlds_model_writes_about_a_target_is_true(world, world_cache: Path, tmp_path: Path, preset: str) -> None:  # noqa: ANN001
    path = Path(__file__).parents[1] / "configs" / "makers" / f"{preset}.yaml"
    maker = yaml.safe_load(path.read_text(encoding="utf-8"))["maker"]["name"]
    found = collect(collect_config(maker, path, [f"cache={world_cache}", "trainer.progress_bar=false"]), tmp_path / "rows.jsonl")
    facts = world.source.encyclopaedia().facts
    right = [any(value in row["answer"] for value in facts[row["entity"]].values()) for row in found.rows]
    assert {row["entity"] for row in found.rows} == {row.entity for row in world.data.streams["forget"]}
    assert len(right) >= 50
    assert sum(right) / len(right) > 0.95
    told = {(row["entity"], value) for row in found.rows for value in facts[row["entity"]].values() if value in row["answer"]}
    assert len(told) / (5 * len({row["entity"] for row in found.rows})) > 0.9
    targets = {target.name for target in find_targets(world.data, [])}
    copied = list(copied_rows(world.data, targets))
    assert not [row for row in copied if row.get("entity") in targets and row["split"] != "forget_paraphrased"]
