"""Commands through ``main``; ``unlearn.run`` is a stand-in that writes run folders without training anything."""

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from unlearn.cli import machine, main
from unlearn.cli.arguments import load, split
from unlearn.config.fingerprint import to_yaml
from unlearn.errors import ConfigError, RunError
from unlearn.registry import entries
from unlearn.tracking.rundir import RunDirectory

BASE = {"data": {"source": "world"}, "method": {"name": "none"}}
STUDY = {"study": "s", "common": BASE, "runs": {"one": None, "two": {"seed": 1}}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "a", **BASE}))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return tmp_path


@pytest.fixture
def command(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return SimpleNamespace(code=ending.value.code or 0, out=said.out, err=said.err)

    return call


@pytest.fixture
def executed(monkeypatch):
    """The stand-in: what was executed, as (name, seed, force); ``failing`` maps a name to what to raise."""
    module = ModuleType("unlearn.run")
    module.calls, module.failing = [], {}

    def execute(config, *, force=False, go_on=False):
        module.calls.append((config.name, config.seed, force))
        run = RunDirectory.create(config.out, config.name, exist="replace" if force else "error")
        run.write_config(to_yaml(config))
        if config.name in module.failing:
            raise module.failing[config.name]
        run.write_results({"forget/accuracy": 0.25, "retain/accuracy": 0.75})
        run.set_status("finished")
        return run.path

    def resume(path):
        module.calls.append((str(path), "resumed"))
        run = RunDirectory.open(path)
        run.set_status("finished")
        return run.path

    module.execute, module.resume = execute, resume
    monkeypatch.setitem(sys.modules, "unlearn.run", module)
    return module


class TestWords:
    def test_files_and_overrides_may_come_in_any_order(self):
        assert split(["run.yaml", "seed=1", "study.yaml", "b=2"]) == (["run.yaml", "study.yaml"], ["seed=1", "b=2"])

    def test_a_file_with_an_equals_sign_is_a_file(self, folder):
        (folder / "lr=1.yaml").write_text("")
        assert split(["lr=1.yaml", "lr=2.yaml"]) == (["lr=1.yaml"], ["lr=2.yaml"])

    def test_a_word_that_is_neither_is_refused_as_an_override(self):
        assert split(["run.yaml", "seed"]) == (["run.yaml"], ["seed"])
        assert split(["nothing.yaml", "some/where"]) == (["nothing.yaml", "some/where"], [])

    def test_runs_of_a_study_can_be_picked(self):
        assert [run.name for run in load(["study.yaml"])] == ["s/one", "s/two"]
        assert [run.name for run in load(["study.yaml"], ["two"])] == ["s/two"]
        assert [run.name for run in load(["study.yaml"], ["s/*"])] == ["s/one", "s/two"]
        with pytest.raises(ConfigError, match=r"^--only must fit a run \(one, two\); found 'tow'\. Did you mean 'two'\?$"):
            load(["study.yaml"], ["tow"])

    def test_overrides_alone_can_say_everything(self):
        assert load(["name=x", "data.source=world", "method.name=none"])[0].name == "x"


class TestRun:
    def test_one_run(self, command, executed):
        done = command("run", "run.yaml", "seed=3")
        assert done.code == 0
        assert executed.calls == [("a", 3, False)]
        assert "0.25" in done.out
        assert "kept in runs/a" in done.err

    def test_a_study_runs_one_after_the_other(self, command, executed):
        done = command("run", "study.yaml", "--force")
        assert done.code == 0
        assert executed.calls == [("s/one", 0, True), ("s/two", 1, True)]
        assert "run 2 of 2: s/two" in done.err
        assert "kept in runs/s;" in done.err
        assert "one" in done.out
        assert "two" in done.out

    def test_options_may_stand_anywhere(self, command, executed):
        assert command("run", "--only", "two", "study.yaml", "--force", "study=t").code == 0
        assert executed.calls == [("t/two", 1, True)]

    def test_a_failed_run_does_not_stop_the_study(self, command, executed):
        executed.failing["s/one"] = RunError("s/one cannot be.")
        done = command("run", "study.yaml")
        assert done.code == 2
        assert [call[0] for call in executed.calls] == ["s/one", "s/two"]
        assert "error: s/one cannot be." in done.err
        assert "1 of 2 runs failed: s/one" in done.err
        assert "two" in done.out

    def test_a_failed_run_alone(self, command, executed):
        executed.failing["a"] = RunError("No.")
        done = command("run", "run.yaml")
        assert (done.code, done.out, done.err) == (2, "", "error: No.\n")

    def test_a_bug_is_not_hidden(self, executed):
        executed.failing["a"] = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            main(["run", "run.yaml"])

    def test_wrong_configurations_run_nothing(self, command, executed):
        done = command("run", "study.yaml", "optim.lrr=1", "optim.lr=high", "seed")
        assert done.code == 2
        assert executed.calls == []
        assert done.err.splitlines() == [
            "error: command line: expected key=value, such as optim.lr=1e-4; found 'seed'.",
            "error: command line: optim.lrr is not a known key. Did you mean 'optim.lr'?",
            "error: command line: optim.lr must be a number (float); found 'high'.",
        ]

    def test_nothing_given(self, command):
        done = command("run")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: expected a configuration file")

    def test_other_ranks_are_silent(self, command, executed, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        done = command("run", "study.yaml")
        assert (done.code, done.out, done.err) == (0, "", "")
        assert len(executed.calls) == 2

    @pytest.mark.parametrize("turned", [False, True])
    def test_ctrl_c_says_how_to_go_on(self, command, executed, turned):
        def interrupt(config, *, force=False, go_on=False):
            executed.calls.append(config.name)
            RunDirectory.create(config.out, config.name)
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                if turned:  # as Lightning's Trainer does
                    sys.exit(1)
                raise

        executed.execute = interrupt
        done = command("run", "study.yaml")
        assert done.code == 130
        assert executed.calls == ["s/one"]
        assert "interrupted: the run is kept in runs/s/one; unlearn run --resume runs/s/one goes on with it\n" in done.err

    def test_ctrl_c_before_there_is_a_folder(self, command, executed):
        def interrupt(config, *, force=False, go_on=False):
            raise KeyboardInterrupt

        executed.execute = interrupt
        done = command("run", "run.yaml")
        assert (done.code, done.err) == (130, "interrupted: nothing is kept\n")

    def test_another_exit_stays_what_it_is(self, command, executed):
        def leave(config, *, force=False, go_on=False):
            sys.exit(7)

        executed.execute = leave
        assert command("run", "run.yaml").code == 7

    def test_resume(self, command, executed):
        command("run", "run.yaml")
        done = command("run", "--resume", "runs/a")
        assert done.code == 0
        assert executed.calls[-1] == ("runs/a", "resumed")
        assert "0.25" in done.out

    def test_resume_takes_nothing_else(self, command, executed):
        done = command("run", "run.yaml", "--resume", "runs/a")
        assert done.code == 2
        assert done.err.startswith("error: --resume takes the configuration of the run it goes on with; found run.yaml beside it.")
        assert "found --force beside it" in command("run", "--resume", "runs/a", "--force").err

    def test_dry_run(self, command, executed):
        command("run", "study.yaml", "--only", "one")
        done = command("run", "study.yaml", "--dry-run")
        assert done.code == 0
        assert len(executed.calls) == 1
        one, two = (line for line in done.out.splitlines() if "runs/s/" in line)
        assert "finished" in one
        assert "nothing" in two
        assert re.search(r"\b[0-9a-f]{16}\b", two)
        assert "Nothing was run." in done.err

    def test_help_config(self, command):
        done = command("run", "--help-config", "method=none", "source=world")
        assert done.code == 0
        for part in ("data.batch.forget", "data.n_forget", "data (world)", "method (none)", "optim.lr", "float", "0.0005"):
            assert part in done.out
        assert "adds the keys" not in done.out


class TestCompare:
    def test_table_and_report(self, command, executed, folder):
        command("run", "study.yaml")
        done = command("compare", "runs/s", "--out", "out/report.html")
        assert done.code == 0
        assert "one" in done.out
        assert "two" in done.out
        assert "</html>" in (folder / "out/report.html").read_text(encoding="utf-8")
        assert "report: out/report.html" in done.err

    def test_what_is_no_run(self, command):
        done = command("compare", "nowhere")
        assert done.code == 2
        assert done.err.startswith("error: nowhere must be a run or a folder of runs; found")


class TestList:
    def test_everything(self, command):
        done = command("list")
        assert done.code == 0
        assert all(
            entry.name in done.out and str(entry.facts["summary"])[:20] in done.out
            for kind in ("method", "source")
            for entry in entries(kind).values()
        )

    @pytest.mark.parametrize("word", ["methods", "method"])
    def test_one_kind_in_full(self, command, word):
        done = command("list", word)
        text = " ".join(done.out.split())
        for entry in entries("method").values():
            parts = [entry.name, entry.facts["family"], entry.facts["paper"], entry.origin, *entry.facts.get("needs", ())]
            assert [part for part in parts if part not in text] == []
        assert "sources" not in done.out

    def test_an_unknown_kind(self, command):
        assert (
            command("list", "metods").err
            == "error: list must name one of methods, sources, makers, attacks; found 'metods'. Did you mean 'methods'?\n"
        )


class TestConfig:
    def test_show_is_yaml_that_loads_again(self, command, folder):
        done = command("config", "show", "run.yaml", "seed=5")
        (folder / "full.yaml").write_text(done.out)
        assert load(["full.yaml"]) == load(["run.yaml", "seed=5"])
        assert done.out.startswith("# a, fingerprint ")

    def test_show_of_a_study_is_one_document_each(self, command):
        documents = list(yaml.safe_load_all(command("config", "show", "study.yaml").out))
        assert [(d["name"], d["seed"]) for d in documents] == [("s/one", 0), ("s/two", 1)]
        assert len(list(yaml.safe_load_all(command("config", "show", "study.yaml", "--only", "two").out))) == 1

    def test_diff_of_files_and_folders(self, command, executed, folder):
        command("run", "run.yaml", "optim.lr=1e-3")
        done = command("config", "diff", "run.yaml", "runs/a")
        assert [line.split() for line in done.out.splitlines() if "optim" in line] == [["optim.lr", "0.0005", "0.001"]]
        assert command("config", "diff", "run.yaml", "run.yaml").out == "run.yaml and run.yaml do not differ.\n"

    def test_diff_takes_one_run_on_each_side(self, command):
        assert "study.yaml: expected one run; found a study of 2." in command("config", "diff", "run.yaml", "study.yaml").err

    def test_help(self, command):
        done = command("config", "help")
        assert done.code == 0
        assert "evaluation.collapse_perplexity" in done.out
        assert "(required)" in done.out
        assert f"method={'|'.join(entries('method'))}"[:60] in done.out
        assert "data.n_forget" not in done.out

    def test_help_takes_plugins_from_a_configuration(self, command):
        assert "data.n_forget" in command("config", "help", "run.yaml").out
        assert "data.n_forget" in command("config", "help", "data.source=world").out

    @pytest.mark.parametrize("word", ["seed=1", "method=", "method"])
    def test_help_takes_nothing_else(self, command, word):
        assert command("config", "help", "source=world", word).err.startswith(
            "error: --help-config: expected method=NAME or source=NAME; found"
        )

    def test_help_with_an_unknown_plugin(self, command):
        assert "Did you mean 'none'?" in command("config", "help", "method=nonn").err


def findings(text):
    """[(status, what, text)] of doctor's output."""
    rows = []
    for line in text.splitlines():
        if found := re.match(r"  (ok|warn|fail)\s+(\S+)\s+(.*)", line):
            rows.append(list(found.groups()))
        elif rows and line.startswith("      "):
            rows[-1][2] += " " + line.strip()
    return rows


class TestDoctor:
    def test_a_healthy_machine(self, command):
        done = command("doctor")
        rows = findings(done.out)
        assert done.code == 0
        assert {row[1] for row in rows} == {"python", "packages", "devices", "memory", "disk", "hub", "tracking"}
        assert "torch 2" in next(row[2] for row in rows if row[1] == "packages")

    def test_old_and_missing_packages(self, monkeypatch):
        monkeypatch.setattr(
            machine.metadata,
            "requires",
            lambda _: ["torch>=99", "nothing-like-it>=1", "rich", "odd; extra == 'odd'", "x; python_version < '3'"],
        )
        rows = [(f.status, f.text) for f in machine.packages()]
        assert rows[0][0] == "fail"
        assert re.fullmatch(r"expected torch >=99; found 2\S+\.", rows[0][1])
        assert rows[1] == ("fail", "expected nothing-like-it >=1; found none.")
        assert rows[2][1].startswith("rich ")
        assert rows[-1] == ("ok", "optional, not installed: odd")

    def test_a_broken_piece_is_a_line(self, command, monkeypatch):
        def broken():
            raise OSError("libcudart is gone\nlong story")
            yield

        monkeypatch.setattr(machine, "devices", broken)
        done = command("doctor")
        assert done.code == 1
        assert ["fail", "devices", "OSError: libcudart is gone"] in findings(done.out)
        assert {"packages", "tracking"} <= {row[1] for row in findings(done.out)}

    def test_little_disk(self, monkeypatch):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * machine.GB))
        assert {f.status for f in machine.disk([])} == {"warn"}
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        assert {f.status for f in machine.disk([])} == {"fail"}

    def test_a_wrong_configuration(self, command):
        done = command("doctor", "run.yaml", "optim.lrr=1", "seed=x")
        assert done.code == 1
        assert [row[2] for row in findings(done.out) if row[:2] == ["fail", "config"]] == [
            "command line: optim.lrr is not a known key. Did you mean 'optim.lr'?",
            "command line: seed must be a whole number (int); found 'x'.",
        ]

    def test_a_good_configuration(self, command):
        done = command("doctor", "study.yaml")
        assert done.code == 0, done.out
        rows = {row[1]: row for row in findings(done.out)}
        assert rows["config"][2] == "2 runs: s/one, s/two"
        assert rows["data"][2].startswith("world: rows of forget ")
        assert rows["model"][0] == rows["sae"][0] == "ok"
        assert rows["trainer"][0] == "ok"

    def test_missing_models(self, command):
        done = command("doctor", "run.yaml", "model.path=./no/model", "sae.path=./no/sae")
        rows = {row[1]: row for row in findings(done.out)}
        assert done.code == 1
        assert rows["model"][0] == "fail"
        assert rows["model"][2].startswith("model.path must be a directory or a hub id (owner/name); found no directory at ./no/model.")
        assert rows["sae"][:1] == ["fail"]
        assert rows["sae"][2].startswith("sae.path must be a SAELens directory; found no cfg.json in no/sae.")
        assert rows["memory"][:2] == ["warn", "memory"]

    def test_an_sae_that_does_not_fit(self, command, folder):
        from tests.tiny import tiny_llama, tiny_tokenizer

        lm = tiny_llama()
        lm.save_pretrained(folder / "lm")
        tiny_tokenizer().save_pretrained(folder / "lm")
        width, blocks = lm.config.hidden_size, lm.config.num_hidden_layers
        (folder / "sae").mkdir()
        (folder / "sae" / "sae_weights.safetensors").write_bytes(b"")

        def verdict(d_in, layer):
            facts = {"d_in": d_in, "d_sae": 64, "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}
            (folder / "sae" / "cfg.json").write_text(json.dumps(facts))
            rows = {row[1]: row for row in findings(command("doctor", "run.yaml", "model.path=lm", "sae.path=sae").out)}
            assert rows["model"][0] == "ok"
            assert f"{blocks} blocks of width {width}" in rows["model"][2]
            return rows["sae"]

        assert verdict(width, 1) == ["ok", "sae", "sae: 64 latents on the output of block 1"]
        assert verdict(width + 1, 1)[2] == f"sae.path must fit the model's width {width}; found d_in {width + 1} in sae."
        assert verdict(width, blocks)[2] == f"sae.layer must be below the model's {blocks} blocks; found {blocks}."


class TestTrackingStores:
    def check(self, uri, tmp_path):
        config = load(["run.yaml", f"tracking.uri={uri}"])
        (finding,) = machine.tracking(config)
        return finding

    def test_off(self):
        (finding,) = machine.tracking(load(["run.yaml", "tracking.enabled=false"]))
        assert (finding.status, finding.text) == ("ok", "off (tracking.enabled: false)")

    def test_sqlite(self, tmp_path):
        assert self.check("sqlite:///new.db", tmp_path).status == "ok"
        assert not (tmp_path / "new.db").exists()
        (tmp_path / "bad.db").write_text("no database" * 100)
        finding = self.check("sqlite:///bad.db", tmp_path)
        assert finding.status == "warn"
        assert "no answer (file is not a database)" in finding.text

    def test_a_folder(self, tmp_path):
        assert self.check("./mlruns", tmp_path).status == "ok"

    def test_servers(self, tmp_path):
        class Health(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Health) as server:
            port = server.server_port
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            assert self.check(f"http://me@127.0.0.1:{port}", tmp_path).text == f"MLflow at http://127.0.0.1:{port}"
            assert "status 404" not in self.check(f"http://127.0.0.1:{port}/", tmp_path).text
            assert self.check(f"http://127.0.0.1:{port}/deep", tmp_path).status == "warn"
            server.shutdown()
            thread.join()
        for scheme in ("http", "postgresql"):
            finding = self.check(f"{scheme}://127.0.0.1:{port}/x", tmp_path)
            assert finding.status == "warn"
            assert "no answer" in finding.text


class TestProcess:
    def test_the_console_script(self):
        script = Path(sys.executable).with_name("unlearn")
        done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stdout) == (0, "unlearn 0.1.0\n")

    def test_usage_errors(self, command):
        done = command("rnu")
        assert done.code == 2
        assert "No such command 'rnu'" in done.err
        assert command("run", "--nothing").code == 2

    def test_help_needs_no_terminal(self, command):
        done = command("--help")
        assert done.code == 0
        assert all(name in done.out for name in ("run", "compare", "list", "doctor", "config"))


def test_several_devices_are_several_processes_of_the_same_command(command, executed, folder, monkeypatch):
    started = []
    monkeypatch.setattr("unlearn.launch._elastic", lambda count, words: started.append((count, list(words))) or 75)
    words = (str(folder / "study.yaml"), "trainer.devices=2", "trainer.accelerator=cpu")
    assert command("run", *words, "--only", "one", "--force").code == 75
    assert started == [(2, ["run", *words, "--only", "one", "--force"])]
    assert not executed.calls
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert command("run", *words).code == 0
    assert len(started) == 1
    assert executed.calls
