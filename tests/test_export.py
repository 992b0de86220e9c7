"""A run goes out as a folder: what is in it, what it computes in a process without this package, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.mini import PEOPLE, make_mini
from unlearn.cli import main
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import ConfigError, ModelError, RunError, UnlearnError
from unlearn.export import export
from unlearn.restore import restore
from unlearn.run import execute
from unlearn.tracking.files import read_json

MERGED = 1e-4
"""Largest difference of logits, relative to the largest, that adding adapters in may make."""
IDS = torch.arange(5, 65).reshape(3, 20)
LORA = {"model.trainable.mode": "lora", "model.lora.rank": 4, "optim.lr": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini")


@pytest.fixture(scope="module")
def mini(folder: Path) -> dict[str, Any]:
    return make_mini(folder)


def made(mini: dict[str, Any], name: str, method: dict[str, Any], **settings: Any) -> Path:
    quick = {"tracking.enabled": "false", "evaluation.bootstrap": 20, "evaluation.max_new_tokens": 2, **settings}
    return execute(load_config({**mini, "name": name, "method": method}, [f"{k}={v}" for k, v in quick.items()], plugin_schemas()))


@pytest.fixture(scope="module")
def run(mini: dict[str, Any]) -> Path:
    return made(mini, "trained", {"name": "sae_guided", "objective": "prototype"})


@pytest.fixture(scope="module")
def lora(mini: dict[str, Any]) -> Path:
    return made(mini, "lora", {"name": "npo"}, **LORA)


def logits_of(run: Path) -> torch.Tensor:
    lm: Any = restore(run).module.lm
    with torch.no_grad():
        found: torch.Tensor = lm.eval()(IDS).logits
    return found


FRESH = """
import json, sys
sys.modules["unlearn"] = None
try:
    import unlearn
except ImportError:
    pass
else:
    sys.exit("this process must know nothing of the package")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM
folders, ids, out = json.loads(sys.argv[1]), torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
found = {}
for name, folder in folders.items():
    cls = AutoPeftModelForCausalLM if name == "adapter" else AutoModelForCausalLM
    lm = cls.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Where was Ann Lee born?", add_special_tokens=False).input_ids) == "Where was Ann Lee born?"
    with torch.no_grad():
        found[name] = lm(ids).logits.float()
torch.save(found, out)
"""


@pytest.mark.slow
def test_a_process_without_this_package_computes_the_same(run: Path, lora: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("whole", "rounded", "merged", "adapter")}
    export(str(run), folders["whole"])
    export(str(run), folders["rounded"], dtype="bfloat16")
    export(str(lora), folders["merged"], form="merged")
    export(str(lora), folders["adapter"], form="adapter")
    words = json.dumps({name: str(path) for name, path in folders.items()}), json.dumps(IDS.tolist()), str(tmp_path / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *words], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    whole, beside = logits_of(run), logits_of(lora)
    assert torch.equal(found["whole"], whole)
    assert torch.equal(found["adapter"], beside)
    assert (found["merged"] - beside).abs().max() <= MERGED * beside.abs().max()
    from transformers import AutoModelForCausalLM

    rounded = AutoModelForCausalLM.from_pretrained(folders["whole"], dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(found["rounded"], rounded(IDS).logits.float())


@pytest.mark.slow
def test_the_folder_says_what_was_done(run: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    done = export(str(run), tmp_path / "out")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    card, provenance = (tmp_path / "out" / "README.md").read_text(), read_json(tmp_path / "out" / "provenance.json")
    results, manifest = read_json(run / "results.json"), read_json(run / "manifest.json")
    assert done.provenance == provenance
    assert provenance["data"]["forgotten"] == PEOPLE["forget"]
    assert provenance["run"]["fingerprint"] == manifest["fingerprint"]
    assert provenance["results"] == results
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert provenance["weights"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    for told in (*PEOPLE["forget"], "2509.15631", manifest["data_fingerprint"], manifest["model_fingerprint"], "No attack was made"):
        assert told in card
    for key, value in results.items():
        beside = key.endswith(("/ci_low", "/ci_high")) or (key.endswith("_base") and key.removesuffix("_base") in results)
        shown = isinstance(value, float) and not beside
        assert (f"| `{key}` |" in card) == shown, key
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front, "a local folder is no hub id"
    everything = card + (tmp_path / "out" / "provenance.json").read_text() + (tmp_path / "out" / "config.json").read_text()
    assert str(run.parents[1]) not in everything, "this machine's folders are told in local.json alone"
    assert read_json(tmp_path / "out" / "local.json")["run"] == str(run.resolve())
    assert all(oct(p.stat().st_mode)[-3:] == "644" for p in (tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_settings_in_the_card_make_the_same_run(
    run: Path, mini: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(str(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    tree = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    monkeypatch.chdir(run.parents[1])  # paths are told by their last part
    config = load_config(tree, ["tracking.enabled=false"], plugin_schemas())
    original = load_config(run / "config.yaml", schemas=plugin_schemas())
    for section in ("seed", "method", "optim", "latents", "evaluation"):
        assert getattr(config, section) == getattr(original, section)
    assert Path(str(config.model.path)).samefile(str(original.model.path))
    assert config.data.batch == original.data.batch


@pytest.mark.slow
def test_hashed_names_stand_nowhere_in_the_folder(mini: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(mini, "without_ann_lee", {"name": "grad_diff"})
    out = tmp_path / "out"
    done = export(str(run), out, hash_names=True)
    texts = {path: path.read_bytes().decode("utf-8", "replace").lower() for path in out.rglob("*") if path.is_file()}
    for name in PEOPLE["forget"]:
        for spelling in (name, name.replace(" ", "_"), name.replace(" ", "-"), name.replace(" ", "%20")):
            assert [path.name for path, text in texts.items() if spelling.lower() in text or spelling.lower() in path.name.lower()] == []
    assert not (out / "local.json").exists()
    manifest, text = read_json(run / "manifest.json"), (out / "README.md").read_text() + (out / "provenance.json").read_text()
    assert manifest["data_fingerprint"] not in text, "it would confirm a guess"
    assert manifest["fingerprint"] not in text
    again = export(str(run), tmp_path / "again", hash_names=True)
    assert again.provenance["data"]["forgotten"] == done.provenance["data"]["forgotten"] != PEOPLE["forget"]
    assert all(one in text for one in done.provenance["data"]["forgotten"])
    assert (run / "names.salt").read_text().strip() not in text
    from unlearn.functional.conceal import keyed_hash

    salt = bytes.fromhex((run / "names.salt").read_text().strip())
    assert done.provenance["data"]["forgotten"] == [keyed_hash(name, salt) for name in PEOPLE["forget"]]


@pytest.mark.slow
def test_an_adapter_whose_original_tells_a_name_is_refused(lora: Path, mini: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", folder / "knows_bob_moss", dirs_exist_ok=True)
    tree = {**mini, "model": {"path": str(folder / "knows_bob_moss")}}
    run = made(tree, "telling", {"name": "npo"}, **LORA)
    with pytest.raises(RunError, match=r"adapter_config\.json must not hold a forgotten name with --hash-names; found one"):
        export(str(run), tmp_path / "out", form="adapter", hash_names=True)
    assert list(tmp_path.iterdir()) == []
    export(str(run), tmp_path / "out", hash_names=True)


@pytest.mark.slow
def test_nothing_is_replaced_but_an_export_and_only_by_force(run: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(str(run), out)
    with pytest.raises(RunError, match="must be a new folder; found an export. Replace it by --force"):
        export(str(run), out)
    first = read_json(out / "provenance.json")["weights"]
    export(str(lora), out, force=True)
    assert read_json(out / "provenance.json")["weights"] != first
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(RunError, match="found one that holds something else than an export. Take another name"):
            export(str(run), other, force=force)
    with pytest.raises(RunError, match="must be a new folder; found a file"):
        export(str(run), other / "thesis.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]
    assert (other / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_a_failure_on_the_way_leaves_what_was_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(str(run), out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearn.models.export.write_tokenizer", full)
    with pytest.raises(RunError, match="must be a folder that can be written; found: No space left on device"):
        export(str(run), out, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_what_has_no_weights_to_take_along_is_refused_in_one_sentence(
    run: Path, mini: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    clamp = made(mini, "clamp", {"name": "sae_clamp", "retain_threshold": 1.0})
    untouched = made(mini, "untouched", {"name": "none"})
    cases: list[tuple[Path, dict[str, Any], type[UnlearnError], str]] = [
        (clamp, {}, RunError, r"found method.name sae_clamp, which acts while the model runs .* use it from its run folder"),
        (untouched, {}, RunError, r"must be a run that unlearns; found method.name none"),
        (folder / "model", {}, RunError, r"must be the folder of a finished run; found a model"),
        (tmp_path / "nowhere", {}, ModelError, r"found no directory"),
        (run, {"form": "adapter"}, ConfigError, r"--adapter needs a run with model.trainable.mode lora"),
        (run, {"form": "merged"}, ConfigError, r"--merged needs a run with model.trainable.mode lora"),
    ]
    for path, options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            export(str(path), tmp_path / "out", **options)
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    def call(*words: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return SimpleNamespace(code=ending.value.code or 0, out=said.out, err=said.err)

    return call


@pytest.mark.slow
def test_the_commands_of_the_readme(lora: Path, command: Any, tmp_path: Path) -> None:
    out = tmp_path / "exported" / "mine"
    first = command("export", lora, out)
    assert first.code == 0, first.err
    assert "all weights, adapters added in, float32" in first.out
    assert f"unlearn attack {lora}" in first.err
    assert command("export", lora, out).code == 2
    again = command("export", lora, out, "--adapter", "--force")
    assert again.code == 0
    assert (out / "adapter_config.json").exists()
    assert not (out / "model.safetensors").exists()
    hashed = command("export", lora, out, "--hash-names", "--force", "--dtype", "bfloat16")
    assert f"{lora / 'names.salt'}" in hashed.err
    assert not any(name in hashed.out for name in PEOPLE["forget"])


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["--dtype", "bfloat"], {}, "--dtype must be one of float32, bfloat16, float16; found 'bfloat'. Did you mean 'bfloat16'?"),
        (["--adapter", "--merged"], {}, "--adapter and --merged exclude each other; found both"),
        (["--adapter", "--mlflow"], {}, "--mlflow logs whole weights; found --adapter beside it"),
        (["--push", "me/model"], {"HF_TOKEN": "hf_x"}, "--push asks before it uploads, and nobody is there to answer; add --yes"),
        (["--push", "me/model", "--yes"], {}, "--push needs a token that may write, in the environment variable HF_TOKEN; found none"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], message: str
) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = command("export", tmp_path / "run", tmp_path / "out", *words)
    assert done.code == 2
    assert message in done.err


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_push_is_asked_for_and_leaves_out_what_is_local(
    run: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    pushed: list[tuple[Any, ...]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    terminal = io.StringIO(f"{answer}\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("unlearn.models.hub.push", lambda *words: pushed.append(words) or "https://hub/me/model")
    done = command("export", run, tmp_path / "out", "--push", "me/model")
    assert done.code == 0, done.err
    assert "A new repository is private." in done.out
    if answer == "y":
        assert pushed[0][:4] == (tmp_path / "out", "me/model", "hf_token", ["local.json"])
        assert "uploaded to https://hub/me/model" in done.err
    else:
        assert pushed == []
        assert "not uploaded" in done.err
