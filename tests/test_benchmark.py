"""Models that no run of ours has made, and runs, measured on data sources."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.forks import free_port
from tests.mini import LAYER, lines, make_mini
from tests.test_restore import digest
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.toys import toy
from unlearn.benchmark import Evaluated, default_folder, evaluate
from unlearn.cli import main
from unlearn.config.benchmarks import benchmark_configs
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import ConfigError, ModelError, RunError
from unlearn.evaluation.progress import StageBar
from unlearn.run import execute
from unlearn.tracking.files import read_json, read_lines
from unlearn.tracking.reader import read_run

OFTEN = {"evaluation": {"bootstrap": 20, "permutations": 9, "null_draws": 3, "max_new_tokens": 4, "samples": 4}}
QUIET = {"trainer": {"accelerator": "cpu", "progress_bar": False}}
EXACT = ("forget/accuracy", "forget/probability", "forget/rouge_l", "retain/utility", "generic/perplexity", "collapse/entropy")
BESIDE = ("generic/kl_to_base", "collapse/hidden_norm_drift", "collapse/flag", "generic/perplexity_base")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mini")
    made = make_mini(folder)
    wrong = [{**row, "perturbed": ["Rome", "a baker"]} if "question" in row else row for row in lines()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    changed = tiny_llama(layers=4, seed=5)
    changed.load_state_dict(torch.load(_state(folder / "model"), weights_only=True))
    with torch.no_grad():
        changed.model.layers[2].mlp.down_proj.weight.mul_(0.5)
    changed.save_pretrained(folder / "changed")
    tiny_tokenizer().save_pretrained(folder / "changed")
    return {**made, "folder": folder}


def _state(folder: Path) -> io.BytesIO:
    from transformers import AutoModelForCausalLM

    buffer = io.BytesIO()
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), buffer)
    buffer.seek(0)
    return buffer


def settings(mini: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"data": mini["data"], "cache": mini["cache"], "latents": mini["latents"], **OFTEN, **QUIET, **more}


def measured(mini: dict[str, Any], out: Path, *overrides: str, model: str = "changed", more: Any = None, **options: Any) -> dict[str, Any]:
    done = evaluate(str(mini["folder"] / model), ["jsonl"], [settings(mini, **(more or {}))], overrides, out=out, **options)
    assert not done.failed, done.failed
    return read_json(done.folders["jsonl"] / "results.json")


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    numbers = {key for key in a.keys() | b.keys() if not isinstance(a.get(key, b.get(key)), str)}
    return {key: (a.get(key), b.get(key)) for key in numbers if a.get(key) != pytest.approx(b.get(key), rel=1e-5, abs=1e-6)}


def test_any_model_is_measured_without_an_sae_and_is_not_changed(mini: dict[str, Any], tmp_path: Path) -> None:
    before = digest(mini["folder"] / "changed")
    results = measured(mini, tmp_path / "out")
    assert set(EXACT) <= set(results)
    assert {"forget/answer_mix_distance", "collapse/repetition", "forget/accuracy/ci_low"} <= set(results)
    assert not [key for key in results if key.startswith("latent/") or key in BESIDE]
    assert digest(mini["folder"] / "changed") == before
    record = read_run(tmp_path / "out" / "jsonl")
    assert record.status["state"] == "finished"
    assert record.manifest["kind"] == "evaluation"
    assert record.manifest["subject"] == str(mini["folder"] / "changed")
    assert {"prompt", "reference", "after"} <= set(record.samples[0])
    assert "before" not in record.samples[0]
    assert record.method == ""


def test_the_weights_in_memory_stay_as_they_are(mini: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unlearn.benchmark as module

    seen = []

    def load(*args: Any) -> Any:
        seen.append(load_models(*args))
        hashes.append(weights(seen[-1].lm))
        return seen[-1]

    def weights(lm: Any) -> str:
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in lm.state_dict().values())).hexdigest()

    load_models = module.load_models
    hashes: list[str] = []
    monkeypatch.setattr(module, "load_models", load)
    measured(mini, tmp_path / "out", base=str(mini["folder"] / "model"), more={"sae": mini["sae"]})
    lm = seen[0].lm
    assert [weights(lm)] == hashes
    assert not any(p.requires_grad or p.grad is not None for p in lm.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.modules())


def test_the_base_adds_what_has_changed_and_an_sae_recognition(mini: dict[str, Any], tmp_path: Path) -> None:
    plain = measured(mini, tmp_path / "plain")
    base = str(mini["folder"] / "model")
    beside = measured(mini, tmp_path / "beside", base=base)
    whole = measured(mini, tmp_path / "whole", "evaluation.places=true", "evaluation.depth=true", base=base, more={"sae": mini["sae"]})
    assert set(BESIDE) <= set(beside)
    assert beside["generic/kl_to_base"] > 1e-5
    assert not [key for key in beside if key.startswith("latent/")]
    assert {"latent/c2st_auc", "latent/p_unknown", "latent/probe_auc", "latent/c2st_auc@layer3", "forget/depth_score"} <= set(whole)
    for more in (beside, whole):
        assert {key: (value, more[key]) for key, value in plain.items() if more[key] != pytest.approx(value, nan_ok=True)} == {}
    assert read_json(tmp_path / "whole" / "jsonl" / "manifest.json")["hook"]["layer"] == LAYER
    assert "before" in read_lines(tmp_path / "beside" / "jsonl" / "samples.jsonl")[0]


@pytest.mark.slow
def test_the_numbers_are_those_of_a_run_that_measures_the_same_model(mini: dict[str, Any], tmp_path: Path) -> None:
    """``method none`` on the same files is the independent way to them, calibration of recognition included."""
    config = {key: value for key, value in mini.items() if key != "folder"} | {"name": "none", "method": {"name": "none"}}
    run = read_json(execute(load_config(config, ["tracking.enabled=false"], plugin_schemas())) / "results.json")
    run = {key: value for key, value in run.items() if not key.startswith("cost/")}
    sources = {"sae": mini["sae"], "evaluation": mini["evaluation"]}
    itself = measured(mini, tmp_path / "itself", model="model", more=sources)
    known = {key: value for key, value in run.items() if key not in (*BESIDE, "collapse/reason") and not key.endswith("_base")}
    assert differences(itself, known) == {}
    with_base = measured(mini, tmp_path / "with_base", model="model", more=sources, base=str(mini["folder"] / "model"))
    assert differences(with_base, run | {"collapse/flag": 0.0}) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"name": "sae_guided"},
        {"name": "npo", "lora": True},
        {"name": "sae_clamp", "retain_threshold": 0.8},
        {"name": "offset"},
    ],
    ids=lambda method: str(method["name"]),
)
def test_a_run_gives_its_own_numbers(mini: dict[str, Any], tmp_path: Path, method: dict[str, Any]) -> None:
    """Trained weights, adapters, and interventions that are no weights at all."""
    adapters = {"trainable": {"mode": "lora"}, "lora": {"rank": 2}} if "lora" in method else {}
    config = {key: value for key, value in mini.items() if key != "folder"} | {"name": f"own_{method['name']}"}
    config |= {"method": {k: v for k, v in method.items() if k != "lora"}, "model": {**mini["model"], **adapters}}
    path = execute(load_config(config, ["tracking.enabled=false"], plugin_schemas()))
    before = digest(path)
    kept = {key: value for key, value in read_json(path / "results.json").items() if not key.startswith("cost/")}
    original = measured(mini, tmp_path / "original", model="model")
    assert kept["forget/probability"] != pytest.approx(original["forget/probability"], rel=1e-4)
    done = evaluate(str(path), [], out=tmp_path / "own")
    assert differences(read_json(done.folders["jsonl"] / "results.json"), kept) == {}
    # the same rows under another name: not the run's own suite, but one put together anew
    again = evaluate(str(path), [], [{"benchmarks": {"mine": mini["data"]}}], ["evaluation.samples=3"], out=tmp_path / "own")
    assert not again.failed
    assert differences(read_json(again.folders["mine"] / "results.json"), kept) == {}
    assert digest(path) == before
    with pytest.raises(RunError, match=r"must be one, or the folder of a run; found a measurement in .*: give .*own_"):
        evaluate(str(done.folders["jsonl"]), ["jsonl"], out=tmp_path / "more")


def test_the_batch_size_does_not_matter(mini: dict[str, Any], tmp_path: Path) -> None:
    base, more = str(mini["folder"] / "model"), {"sae": mini["sae"]}
    a = measured(mini, tmp_path / "a", "evaluation.batch_size=3", base=base, more=more)
    b = measured(mini, tmp_path / "b", "evaluation.batch_size=64", base=base, more=more)
    assert differences(a, b) == {}


def two(mini: dict[str, Any], tmp_path: Path, path: Path, **options: Any) -> Evaluated:
    benchmarks = {"first": mini["data"], "second": {**mini["data"], "path": str(path)}}
    sources = [{key: value for key, value in settings(mini, benchmarks=benchmarks).items() if key != "data"}]
    return evaluate(str(mini["folder"] / "changed"), [], sources, out=tmp_path / "out", **options)


def test_what_is_finished_is_kept_and_a_failure_costs_nothing(mini: dict[str, Any], tmp_path: Path) -> None:
    rows, told = tmp_path / "rows.jsonl", []
    done = two(mini, tmp_path, rows, told=lambda name, error: told.append((name, str(error))))
    assert list(done.folders) == ["first"]
    assert str(rows) in str(done.failed["second"])
    assert [name for name, _ in told] == ["second"]
    results = done.folders["first"] / "results.json"
    stamp = results.stat().st_mtime_ns
    rows.write_bytes((mini["folder"] / "rows.jsonl").read_bytes())
    done = two(mini, tmp_path, rows)
    assert list(done.folders) == ["first", "second"]
    assert done.kept == ("first",)
    assert results.stat().st_mtime_ns == stamp
    assert read_json(results) == read_json(done.folders["second"] / "results.json")
    assert two(mini, tmp_path, rows).kept == ("first", "second")
    assert two(mini, tmp_path, rows, force=True).kept == ()
    assert results.stat().st_mtime_ns > stamp


def test_a_failure_while_measuring_leaves_the_others_and_is_put_right_by_the_next_call(
    mini: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unlearn.evaluation.suite as module

    rows = tmp_path / "rows.jsonl"
    rows.write_bytes((mini["folder"] / "rows.jsonl").read_bytes())
    calls = []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ModelError("no room")
        return free_text(*args)

    free_text = module.free_text
    monkeypatch.setattr(module, "free_text", stop)
    done = two(mini, tmp_path, rows)
    assert list(done.folders) == ["first"]
    status = read_json(tmp_path / "out" / "second" / "status")
    assert (status["state"], status["reason"]) == ("failed", "no room")
    monkeypatch.setattr(module, "free_text", free_text)
    assert two(mini, tmp_path, rows).kept == ("first",)
    assert read_json(tmp_path / "out" / "second" / "status")["state"] == "finished"


def test_other_weights_rows_or_settings_are_another_measurement(mini: dict[str, Any], tmp_path: Path) -> None:
    from unlearn.subject import contents

    out = tmp_path / "out"
    measured(mini, out)
    again = r"jsonl must be new, or hold the same measurement; found one of .*changed with another model.* --force\."
    other = evaluate(str(mini["folder"] / "model"), ["jsonl"], [settings(mini)], out=out)
    with pytest.raises(RunError, match=again):
        raise other.failed["jsonl"]
    other = evaluate(str(mini["folder"] / "changed"), ["jsonl"], [settings(mini)], ["evaluation.bootstrap=5"], out=out)
    with pytest.raises(RunError, match=again):
        raise other.failed["jsonl"]
    # one number in the middle of the weights, far from either end of the file
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, value in ((a, 0), (b, 1)):
        folder.mkdir()
        blob = bytearray(6 << 20)
        blob[3 << 20] = value
        (folder / "model.safetensors").write_bytes(blob)
    assert contents(str(a)) != contents(str(b))


@pytest.mark.slow
def test_a_run_is_never_replaced_by_a_measurement(mini: dict[str, Any], tmp_path: Path) -> None:
    config = {key: value for key, value in mini.items() if key != "folder"} | {
        "out": str(tmp_path),
        "name": "jsonl",
        "method": {"name": "none"},
    }
    path = execute(load_config(config, ["tracking.enabled=false"], plugin_schemas()))
    before = digest(path)
    done = evaluate(str(mini["folder"] / "model"), ["jsonl"], [settings(mini)], out=tmp_path, force=True)
    with pytest.raises(RunError, match=r"--out must be a folder for measurements; found a run in .*jsonl"):
        raise done.failed["jsonl"]
    assert digest(path) == before


def test_errors_name_what_is_wrong(mini: dict[str, Any], tmp_path: Path) -> None:
    model, empty = str(mini["folder"] / "changed"), tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ModelError, r"must be a directory or a hub id \(owner/name\); found no directory at /no/where", {"model": "/no/where"}),
        (ModelError, r"must be a directory or a hub id \(owner/name\); found no directory at .*gone", {"model": str(tmp_path / "gone")}),
        (ModelError, r"config\.json, or of a finished run; found no config\.json and no run in .*empty", {"model": str(empty)}),
        (ModelError, r"--base must be a folder with a model's config\.json.* in .*empty", {"base": str(empty)}),
        (ConfigError, r"--benchmark must be one of .*world; found 'jsnl'\. Did you mean 'jsonl'\?", {"benchmarks": ["jsnl"]}),
        (ConfigError, r"--benchmark must name a data source .*; found none", {"benchmarks": []}),
        (ConfigError, r"data\.path must be set", {"benchmarks": ["jsonl"]}),
    ]
    for kind, words, change in cases:
        given = {"model": model, "benchmarks": ["world"], "out": tmp_path / "out", **change}
        with pytest.raises(kind, match=words):
            evaluate(given.pop("model"), given.pop("benchmarks"), **given)
    assert not (tmp_path / "out").exists()
    run = tmp_path / "unfinished"
    run.mkdir()
    (run / "status").write_text('{"state": "killed"}')
    with pytest.raises(RunError, match="must be a finished run; found one that is killed"):
        evaluate(str(run), ["world"])


def test_a_base_that_does_not_fit_is_refused(mini: dict[str, Any], tmp_path: Path) -> None:
    tiny_llama(layers=2).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(ModelError, match=r"--base must be the model that was changed \(blocks: 4\); found 2 in .*short"):
        measured(mini, tmp_path / "out", base=str(tmp_path / "short"))


def test_the_world_is_a_benchmark_for_any_model(mini: dict[str, Any], tmp_path: Path) -> None:
    """No model of the world is built for it; holdout rows give membership attacks."""
    small = {"world_seed": 0, "n_forget": 3, "n_retain": 6, "n_unseen": 3, "n_tail": 40, "n_unknown": 12, "n_heldout": 8, "max_length": 256}
    sources = [{"benchmarks": {"people": {"source": "world", **small}}, "cache": str(tmp_path / "cache"), **OFTEN, **QUIET}]
    done = evaluate(str(mini["folder"] / "model"), ["people"], sources, out=tmp_path / "out")
    assert not done.failed
    results = read_json(done.folders["people"] / "results.json")
    assert set(EXACT) - {"retain/utility"} <= set(results)
    assert {"forget/mia_loss", "forget/privleak"} <= set(results)
    assert not (tmp_path / "cache").exists()


class TestConfigurations:
    def test_a_section_data_belongs_to_its_source(self) -> None:
        sources = [{"data": {"source": "jsonl", "path": "a"}, "method": {"name": "no_such"}, "name": "x", "optim": {"steps": 3}}]
        made = benchmark_configs(Path("out/m"), ["jsonl", "world"], sources, ["data.max_length=99", "benchmarks.world.n_forget=4"])
        assert made["jsonl"].data.path == "a"  # type: ignore[attr-defined]
        assert made["jsonl"].data.max_length == 99
        assert made["world"].data.max_length == 64
        assert made["world"].data.n_forget == 4  # type: ignore[attr-defined]
        assert {made[name].method.name for name in made} == {"none"}
        assert made["world"].name == "m/world"

    def test_data_without_a_source_is_for_all(self) -> None:
        made = benchmark_configs(Path("m"), ["world"], [], ["data.max_length=99"])
        assert made["world"].data.max_length == 99

    def test_what_is_given_for_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.source must be that of a benchmark \(world\); found 'jsonl'"):
            benchmark_configs(Path("m"), ["world"], [{"data": {"source": "jsonl", "path": "a"}}])
        with pytest.raises(ConfigError, match=r"benchmarks\.a: data\.pth is not a known key\. Did you mean 'data\.path'"):
            benchmark_configs(Path("m"), [], [{"benchmarks": {"a": {"source": "jsonl", "pth": "a"}}}])
        with pytest.raises(ConfigError, match="found a study"):
            benchmark_configs(Path("m"), ["world"], [{"study": "s", "runs": {"a": {}}}])

    def test_where_results_go(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        assert default_folder(str(tmp_path / "m")) == Path("evaluations/m")
        assert default_folder("google/gemma") == Path("evaluations/google--gemma")


class TestCommand:
    def test_it_prints_a_table_and_keeps_what_is_there(
        self, mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text(json.dumps(settings(mini, benchmarks={"gone": {"source": "jsonl", "path": "gone.jsonl"}})))
        words = ["evaluate", str(mini["folder"] / "changed"), "c.yaml", "--benchmark", "jsonl", "evaluation.bootstrap=0"]
        with pytest.raises(SystemExit) as ending:
            main([*words, "--benchmark", "gone"])
        said = capsys.readouterr()
        assert ending.value.code == 2
        assert "error: gone: " in said.err
        assert "gone.jsonl" in said.err
        assert "1 of 2 benchmarks failed: gone" in said.err
        assert "jsonl" in said.out
        assert (tmp_path / "evaluations" / "changed" / "jsonl" / "results.json").exists()
        with pytest.raises(SystemExit) as ending:
            main(words)
        said = capsys.readouterr()
        assert not ending.value.code
        assert "kept (--force measures again): jsonl" in said.err
        assert "kept in evaluations/changed" in said.err

    def test_an_interruption_is_said_and_the_same_command_goes_on(
        self, mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import unlearn.evaluation.suite as module

        def interrupted(*args: Any) -> Any:
            raise KeyboardInterrupt

        (tmp_path / "c.yaml").write_text(json.dumps(settings(mini)))
        words = ["evaluate", str(mini["folder"] / "changed"), str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
        free_text = module.free_text
        monkeypatch.setattr(module, "free_text", interrupted)
        with pytest.raises(SystemExit) as ending:
            main(words)
        assert ending.value.code == 130
        assert "the same command measures the rest" in capsys.readouterr().err
        assert read_json(tmp_path / "out" / "jsonl" / "status")["state"] == "killed"
        monkeypatch.setattr(module, "free_text", free_text)
        with pytest.raises(SystemExit) as ending:
            main(words)
        assert not ending.value.code
        assert read_json(tmp_path / "out" / "jsonl" / "status")["state"] == "finished"

    @pytest.mark.slow
    def test_torchrun_starts_it(self, mini: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(json.dumps(settings(mini)))
        words = ["-m", "unlearn", "evaluate", str(mini["folder"] / "changed"), str(tmp_path / "c.yaml"), "--out", str(tmp_path / "shared")]
        alone = measured(mini, tmp_path / "alone")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr[-3000:]
        assert differences(read_json(tmp_path / "shared" / "jsonl" / "results.json"), alone) == {}


def _rank(rank: int, port: int, mini: dict[str, Any], out: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    measured(mini, out, base=str(mini["folder"] / "model"), more={"sae": mini["sae"], "cache": str(cache)})


def test_two_processes_give_the_numbers_of_one(mini: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = measured(mini, tmp_path / "alone", base=str(mini["folder"] / "model"), more={"sae": mini["sae"]})
    port, context = free_port(), multiprocessing.get_context("fork")  # the children take over what the parent has loaded
    out, cache = tmp_path / "shared", tmp_path / "cache"
    ranks = [context.Process(target=_rank, args=(rank, port, mini, out, cache)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert differences(read_json(out / "jsonl" / "results.json"), alone) == {}
    assert read_json(out / "jsonl" / "manifest.json")["world_size"] == 2
    assert len(read_lines(out / "jsonl" / "samples.jsonl")) == 4


def test_without_generic_texts_there_is_no_perplexity(mini: dict[str, Any], tmp_path: Path) -> None:
    rows = [row for row in lines() if row["split"] != "generic"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = str(mini["folder"] / "model")
    results = measured(mini, tmp_path / "out", f"data.path={tmp_path / 'rows.jsonl'}", base=base)
    assert not [key for key in results if key.startswith("generic/")]
    assert results["collapse/flag"] in (0.0, 1.0)


def test_the_bar_names_the_stage_and_the_share(tmp_path: Path) -> None:
    made = toy(tmp_path)
    suite = made.suite()
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    bar = StageBar("toys", suite.stages(), console=screen)
    shares, names = [], []

    def stage(name: str) -> None:
        bar.stage(name)
        names.append(name)
        shares.append(bar.share)
        bar.bar.refresh()

    with bar.watching(made.lm):
        suite.measure(made.lm, stage)
        end = bar.share
    assert names == list(suite.stages())
    assert names[:2] == ["answers: forget", "answers: forget_paraphrased"]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.98 < end <= 1
    seen = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "answers: retain_unseen" in seen
    assert "toys" in seen
    assert not made.lm.get_input_embeddings()._forward_hooks
