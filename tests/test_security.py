"""What comes from outside is data: no pickle, no code of a model's folder, no markup, no secret in what is written, no way out of ``out``.

Every trap that is laid here is first seen to work where nothing guards against it.
"""

import ast
import json
import os
import pickle
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.browser import loaded
from tests.mini import make_mini
from tests.tiny import tiny_llama, tiny_sae, tiny_tokenizer
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import ModelConfig, SAEConfig
from unlearn.config.secrets import hide_secrets
from unlearn.errors import ConfigError, ModelError, RunError, UnlearnError
from unlearn.models.lm import load_lm
from unlearn.report import write_report
from unlearn.tracking.checkpoint import write
from unlearn.tracking.files import append_lines
from unlearn.tracking.reader import read_run
from unlearn.tracking.rundir import RunDirectory, run_path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for part in ("unlearn", "experiments", "docker") for p in (ROOT / part).rglob("*.py"))


# ---------------------------------------------------------------- the package's own code


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


def constant(words, name):
    return getattr(words.get(name), "value", None)


def offences(text):
    """What in ``text`` would run code that somebody else wrote."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                name for name in names if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            ]
    for name, words in calls(tree):
        unsafe_load = name in ("torch.load", "load_from_checkpoint") and constant(words, "weights_only") is not True
        unsafe_fit = "ckpt_path" in words and constant(words, "weights_only") is not True
        arrays = constant(words, "allow_pickle") is True
        remote = constant(words, "trust_remote_code") is True or constant(words, "shell") is True
        evaluated = name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        if unsafe_load or unsafe_fit or arrays or remote or evaluated:
            found.append(name)
    return found


def test_no_source_file_reads_a_pickle_or_runs_a_text():
    assert len(SOURCES) > 100
    assert {str(path): found for path in SOURCES if (found := offences(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "trainer.fit(m, ckpt_path=p)",
        "np.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "eval(x)",
        "yaml.load(x)",
    ],
)
def test_the_search_finds(text):
    assert offences(text)


# ---------------------------------------------------------------- pickles


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """Where a pickle of ``Evil`` leaves its mark; that it does so is seen first."""
    place = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(place)))
    assert place.is_dir()
    place.rmdir()
    yield place
    assert not place.exists()


def test_a_model_of_pickled_weights_that_holds_code_is_refused(marker, tmp_path):
    lm = tiny_llama()
    folder = tmp_path / "model"
    lm.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({**lm.state_dict(), "evil": Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_lm(ModelConfig(path=str(folder)), None)


@pytest.mark.slow
def test_saes_that_hold_code_are_refused(marker, tmp_path):
    from unlearn.models.route_sae import convert_checkpoint
    from unlearn.models.sae import load_sae

    folder = tmp_path / "sae"
    tiny_sae().save_model(folder)
    torch.save({"W_enc": Evil(marker)}, folder / "sae_weights.safetensors")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_sae(SAEConfig(path=str(folder)), None)
    torch.save({"router.weight": Evil(marker)}, tmp_path / "route.pt")
    with pytest.raises(ModelError, match="must be a RouteSAE's state dict"):
        convert_checkpoint(tmp_path / "route.pt", tmp_path / "out", n_blocks=12, k=4)
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        torch.load(tmp_path / "route.pt")  # what sae_lens calls for releases in this format


def test_arrays_of_objects_are_refused(marker, tmp_path):
    from unlearn.models.reference import ReferenceStore

    run = RunDirectory.create(tmp_path, "a")
    run.write_activations(known_ND=np.zeros((5, 3)), unknown_MD=np.ones((5, 3)), target_before_KD=np.zeros((2, 3)))
    objects = np.array([Evil(marker)], dtype=object)
    np.savez(run.activations_path, known_ND=objects, unknown_MD=objects, target_before_KD=objects, target_after_KD=objects)
    text = write_report([read_run(run.path)], tmp_path / "r.html")[0].read_text(encoding="utf-8")
    assert "Where the entities went" not in text

    store = tmp_path / "store"
    store.mkdir()
    np.save(store / "index.npy", objects, allow_pickle=True)
    (store / "manifest.json").write_text(json.dumps({"width": 32, "layers": [], "dtype": "float32"}))
    with pytest.raises((ValueError, UnlearnError)):
        ReferenceStore(tiny_llama(), store)


@pytest.mark.slow
def test_a_checkpoint_that_holds_code_is_refused_even_with_a_right_checksum(marker, tmp_path):
    from unlearn.run import resume

    run = RunDirectory.create(tmp_path / "runs", "run")
    config = make_mini(tmp_path)
    run.write_config(json.dumps({k: v for k, v in config.items() if k != "tracking"}))
    write({"state_dict": {}, "evil": Evil(marker)}, run.checkpoints / "last.ckpt")
    with pytest.raises(RunError, match="tensors and plain values"):
        resume(run.path)


# ---------------------------------------------------------------- code in a model's folder


CODE = """
import os
from pathlib import Path
Path({marker!r}).mkdir(exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
def generate(*args, **words):
    return None
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A model's folder with code of its own, and where that code leaves its mark when it runs."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "model", tmp_path / "ran"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker


def change(path, **facts):
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


AUTO = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


def test_code_beside_a_known_model_does_not_run(own_code):
    folder, marker = own_code
    change(folder / "config.json", auto_map=AUTO)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]})
    lm, _ = load_lm(ModelConfig(path=str(folder)), None)
    assert type(lm).__module__.startswith("transformers.models.llama")
    assert not marker.exists()


def test_a_model_that_needs_its_own_code_is_refused_unless_asked_for(own_code):
    from unlearn.cli.pieces import Pieces

    folder, marker = own_code
    change(folder / "config.json", auto_map=AUTO, model_type="own", architectures=["OwnModel"])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_lm(ModelConfig(path=str(folder)), None)
    run = load_config(
        {"name": "a", "model": {"path": str(folder)}, "data": {"source": "world"}, "method": {"name": "npo"}}, (), plugin_schemas()
    )
    with pytest.raises(ModelError, match="could not be loaded"):
        _ = Pieces(run).lm_config
    assert not marker.exists()
    load_lm(ModelConfig(path=str(folder), trust_remote_code=True), None)
    assert marker.exists()  # the trap works


# ---------------------------------------------------------------- the report in a browser


TAGS = '<script>document.title="ran"</script>"><img src=x onerror="document.title=\'ran\'"><svg onload=document.title="ran">'
HOSTILE = f"Bako {TAGS}'{{{{7*7}}}}</style></title>$\\frac{{"


def hostile_run(out):
    """A run in which every text that may come from data or configuration tries to be markup."""
    run = RunDirectory.create(out, "study/x")
    run.write_results({"forget/accuracy": 0.0, "retain/accuracy": 1.0, "latent/c2st_auc": 0.5, "latent/p_unknown": 0.9, HOSTILE: 1.0})
    run.write_results({"collapse/flag": 1, "collapse/reason": HOSTILE})
    run.write_config(json.dumps({"name": HOSTILE, "method": {"name": HOSTILE}, HOSTILE: HOSTILE, "data": {"path": HOSTILE}}))
    run.manifest_path.write_text(json.dumps({"name": HOSTILE, "command": HOSTILE, HOSTILE: [HOSTILE], "git": {"commit": HOSTILE}}))
    for step in range(0, 30, 10):
        run.append_metrics(step, HOSTILE, {"latent/p_unknown": 0.1, "train/loss": 1.0, HOSTILE: 1.0})
    run.append_samples([{"set": HOSTILE, "entity": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE, "before": HOSTILE, "after": HOSTILE}])
    rng = np.random.default_rng(0)
    shapes = {"known_ND": 20, "unknown_MD": 20, "target_before_KD": 5, "target_after_KD": 5}
    run.write_activations(**{name: rng.normal(size=(n, 4)) for name, n in shapes.items()})
    run.set_status("failed", HOSTILE)
    return run


class Seen(HTMLParser):
    """Elements, attributes, and the text outside of style sheets."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self._inside = [], [], "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += "" if self._inside == "style" else data

    def handle_endtag(self, tag):
        self._inside = ""


@pytest.mark.slow
def test_a_hostile_name_is_shown_and_not_run(tmp_path):
    run = hostile_run(tmp_path)
    [page] = write_report([read_run(run.path)], tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    for markup in (text, loaded(page, tmp_path / "browser") or text):
        seen = Seen(markup)
        assert not {"script", "img", "iframe", "object", "embed", "base"} & set(seen.tags)
        assert not [name for name, _ in seen.attributes if name.startswith("on")]
        assert seen.text.count(TAGS) > 5
        assert "{{7*7}}" in seen.text
        title = markup[markup.index("<title>") + 7 : markup.index("</title>")]
        assert title.startswith("Unlearning report")
    assert "default-src 'none'" in text

    # the trap works: the same text, not escaped, in a page that allows scripts
    bare = tmp_path / "bare.html"
    bare.write_text(f"<!DOCTYPE html><html><head><title>still</title></head><body>{TAGS}</body></html>", encoding="utf-8")
    ran = loaded(bare, tmp_path / "browser2")
    assert ran is None or "<title>ran</title>" in ran
    assert "script" in Seen(bare.read_text()).tags


# ---------------------------------------------------------------- passwords and tokens


PASSWORD, TOKEN, OTHER = "hunter2-in-the-uri", "hf_ABCDEFGHIJKLMNOP", "tracking-pass-word"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{PASSWORD}@host:5000",
        f"postgresql+psycopg2://me:{PASSWORD}@host/db",
        f"postgresql://host/db?user=me&password={PASSWORD}",
        f"https://host/x?access_token={PASSWORD}",
    ],
)
def test_an_address_with_a_password_is_refused_in_the_configuration(uri):
    base = {"name": "a", "data": {"source": "world"}, "method": {"name": "npo"}}
    with pytest.raises(ConfigError, match="tracking.uri must be an address without a password") as error:
        load_config(base, [f"tracking.uri={json.dumps(uri)}"], plugin_schemas())
    assert PASSWORD not in str(error.value)


def secret_free(text):
    return not any(secret in text for secret in (PASSWORD, TOKEN, OTHER))


def test_texts_are_shown_without_secrets():
    environment = {"HF_TOKEN": TOKEN, "MLFLOW_TRACKING_PASSWORD": OTHER, "HOME": "/home/me", "EMPTY_TOKEN": "", "A_TOKEN": "a"}
    said = f"http://me:{PASSWORD}@a/b, postgresql://me:p@{PASSWORD}@db:5432/x?password={PASSWORD} {TOKEN} {OTHER} a /home/me"
    assert hide_secrets(said, environment) == "http://***@a/b, postgresql://***@db:5432/x?password=*** *** *** a /home/me"
    assert hide_secrets("mail me@host about a://b", environment) == "mail me@host about a://b"


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_no_secret_of_the_environment_reaches_what_a_run_writes(tmp_path, monkeypatch, capfd, caplog, fails):
    """A whole run with secrets in the environment and on the command line; the store's password is wrong on purpose for one of them."""
    from unlearn.methods.sae_guided import SAEGuided
    from unlearn.run import execute

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", OTHER)
    monkeypatch.setattr(sys, "argv", ["unlearn", "run", f"x=http://me:{PASSWORD}@host/", f"y={TOKEN}"])
    config = make_mini(tmp_path)
    if fails:
        config.pop("tracking")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:9/")

        def broken(*args):
            raise RuntimeError(f"401 for http://me:{PASSWORD}@host/ with {TOKEN} and {OTHER}")

        monkeypatch.setattr(SAEGuided, "loss", broken)
    run = load_config(config, ["optim.steps=2"], plugin_schemas())
    caplog.set_level("DEBUG")
    with pytest.warns(RuntimeWarning, match="MLflow store") if fails else pytest.MonkeyPatch.context():
        if fails:
            with pytest.raises(RuntimeError, match="401"):
                execute(run)
        else:
            execute(run)
    written = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert {"config.yaml", "manifest.json", "status", "metrics.jsonl"} <= {p.name for p in written} | (
        {"metrics.jsonl"} if fails else set()
    )
    assert all(secret_free(p.read_bytes().decode("utf-8", errors="replace")) for p in written)
    printed = capfd.readouterr()
    assert secret_free(printed.out + printed.err)
    assert all(secret_free(record.getMessage()) for record in caplog.records)
    assert "***" in (tmp_path / "runs" / "run" / ("status" if fails else "manifest.json")).read_text()
    if not fails:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(config["tracking"]["uri"])
        stored = client.get_run(json.loads((tmp_path / "runs" / "run" / "manifest.json").read_text())["mlflow_run_id"])
        assert stored.data.params
        assert secret_free(json.dumps(stored.to_dictionary()))
        assert secret_free((tmp_path / "mlflow.db").read_bytes().decode("utf-8", errors="replace"))


# ---------------------------------------------------------------- names of runs


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc/x", "a/../../x", "x\0y", "link", "link/x", "chain/x", "loop", "loop/x", "n" * 300, "a\nb"]
)
def test_a_name_leads_nowhere_else(tmp_path, name):
    out, outside = tmp_path / "runs", tmp_path / "outside"
    out.mkdir()
    kept = RunDirectory.create(outside, "kept")
    kept.write_config("name: kept\n")
    (out / "link").symlink_to(kept.path)
    (out / "deep").mkdir()
    (out / "chain").symlink_to(out / "deep" / "on")
    (out / "deep" / "on").symlink_to(outside)
    (out / "loop").symlink_to(out / "loop")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for exist in ("error", "replace"):
        with pytest.raises(RunError):
            RunDirectory.create(out, name, exist=exist)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert kept.config_path.read_text() == "name: kept\n"


def test_a_folder_for_runs_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert run_path(tmp_path / "runs", "study/a") == tmp_path / "runs" / "study" / "a"
    assert RunDirectory.create(tmp_path / "runs", "study/a").path.is_dir()


def test_replacing_a_run_does_not_follow_links_inside_it(tmp_path):
    run = RunDirectory.create(tmp_path / "runs", "a")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    run.plots.rmdir()
    run.plots.symlink_to(thesis)
    RunDirectory.create(tmp_path / "runs", "a", exist="replace")
    assert (thesis / "chapter.txt").read_text() == "years of work"


def test_a_name_is_refused_before_anything_is_loaded(tmp_path):
    from unlearn.run import execute

    config = {"name": "../evil", "out": str(tmp_path / "runs"), "data": {"source": "world"}, "method": {"name": "npo"}}
    with pytest.raises(RunError, match="must be a folder inside out"):
        execute(load_config(config, (), plugin_schemas()), force=True)
    assert list(tmp_path.iterdir()) == []
    append_lines(tmp_path / "after.jsonl", [{"a": 1}])  # the folder itself was writable
