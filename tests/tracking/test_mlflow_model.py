"""An exported model in an MLflow store: it loads back through MLflow alone and computes and says the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.mini import make_mini
from unlearn.cli import main
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import RunError
from unlearn.run import execute
from unlearn.tracking.files import read_json
from unlearn.tracking.mlflow_model import log_model

pytestmark = pytest.mark.slow
QUESTION = "Question: Where was Ann Lee born?\nAnswer:"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    mini: dict[str, Any] = make_mini(folder)
    quick = ["evaluation.bootstrap=0", "evaluation.max_new_tokens=5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a new SQLite store keeps its files below the current folder
        return execute(load_config({**mini, "method": {"name": "grad_diff"}}, quick, plugin_schemas()))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return SimpleNamespace(code=ending.value.code or 0, out=said.out, err=said.err)

    return call


def test_the_model_comes_back_with_its_signature(run: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    done = command("export", run, tmp_path / "out", "--mlflow")
    assert done.code == 0, done.err
    uri = done.err.split("in MLflow: ")[1].split()[0]
    assert uri.startswith("models:/")
    store = f"sqlite:///{run.parents[1]}/mlflow.db"
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", store)
    mlflow.set_tracking_uri(store)
    try:
        lm, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
        ids = tokenizer(QUESTION, return_tensors="pt").input_ids
        with torch.no_grad():
            said = tokenizer.decode(lm.generate(ids, max_new_tokens=5, do_sample=False)[0], skip_special_tokens=True)
            again = mlflow.transformers.load_model(uri)
            assert torch.equal(again.model(ids).logits, lm(ids).logits)
        served = mlflow.pyfunc.load_model(uri)
        assert served.metadata.signature.inputs.input_types()[0].name == "string"
        assert {p.name: p.default for p in served.metadata.signature.params} == {"max_new_tokens": 5, "do_sample": False}
        answer = served.predict(QUESTION)
        assert (answer if isinstance(answer, str) else answer[0]) == said
        info = mlflow.get_run(read_json(run / "manifest.json")["mlflow_run_id"])
        assert info.info.status == "FINISHED"
        assert served.metadata.run_id == info.info.run_id
        assert served.metadata.metadata["method"] == "grad_diff"
        requirements = (Path(mlflow.artifacts.download_artifacts(uri)) / "requirements.txt").read_text()
        assert "unlearn" not in requirements
    finally:
        mlflow.set_tracking_uri(None)


def test_a_store_that_does_not_take_it_is_one_sentence_and_the_folder_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"sqlite:///.* must be a store that takes the model; found: "):
        log_model(tmp_path / "out", f"sqlite:///{tmp_path}/other.db", "0" * 32, 5, {})
    assert (tmp_path / "out" / "config.json").exists()


def test_a_run_in_no_store_is_refused(run: Path, command: Any, tmp_path: Path) -> None:
    import json

    manifest = run / "manifest.json"
    kept = manifest.read_text()
    try:
        manifest.write_text(json.dumps({key: value for key, value in json.loads(kept).items() if key != "mlflow_run_id"}))
        done = command("export", run, tmp_path / "out", "--mlflow")
        assert done.code == 2
        assert "--mlflow needs a run that is in an MLflow store; found none" in done.err
        assert command("export", run, tmp_path / "out", "--mlflow", "--adapter").code == 2
    finally:
        manifest.write_text(kept)
