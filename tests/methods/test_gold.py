"""The gold model as a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_llama
from tests.toys import Toy, toy
from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.methods.base import MethodContext
from unlearn.methods.gold import Gold


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_the_run_ends_with_the_gold_models_weights() -> None:
    lm, gold = tiny_llama(seed=0), tiny_llama(seed=1)
    method = Gold(MethodConfig(name="gold"), MethodContext(n_blocks=4, gold=lambda: gold))
    assert method.trainable(4) == TrainableConfig(mode="full")
    method.finish(lm)
    assert all(torch.equal(a, b) for a, b in zip(lm.state_dict().values(), gold.state_dict().values(), strict=True))


def test_a_model_of_another_shape_is_refused(made: Toy) -> None:
    other = tiny_llama(seed=0)
    other.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(32, 8))
    method = Gold(MethodConfig(name="gold"), MethodContext(n_blocks=4, gold=lambda: other))
    with pytest.raises(
        ModelError, match=r"evaluation\.gold must be a model of the same shape; .*down_proj\.weight must be .*found \(32, 8\)"
    ):
        method.finish(tiny_llama(seed=0))


def test_without_a_gold_model_the_need_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method\.name 'gold' needs gold; the run provides none"):
        Gold(MethodConfig(name="gold"), MethodContext(n_blocks=4))


@pytest.mark.slow
def test_a_run_of_it_measures_that_model_and_others_are_measured_against_it(tmp_path: Path) -> None:
    from tests.mini import make_mini
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas
    from unlearn.run import execute
    from unlearn.tracking.files import read_json

    mini = make_mini(tmp_path)
    path = Path(str(mini["model"]["path"]))  # type: ignore[index]
    gold = tmp_path / "gold"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        lm.model.layers[3].mlp.down_proj.weight.mul_(0.5)
    lm.save_pretrained(gold)
    AutoTokenizer.from_pretrained(path).save_pretrained(gold)

    def results(method: str, *more: str) -> dict:
        words = [f"name={method}", f"evaluation.gold={gold}", "tracking.enabled=false", "optim.steps=2", *more]
        return read_json(execute(load_config({**mini, "method": {"name": method}}, words, plugin_schemas())) / "results.json")

    itself = results("gold")
    assert itself["generic/kl_to_base"] > 1e-4
    base = results("none")
    assert base["generic/kl_to_base"] == pytest.approx(0, abs=1e-6)
    if "forget/quality" in itself:
        assert itself["forget/quality"] == 1.0
    with pytest.raises(
        ModelError, match=r"evaluation\.gold must be a directory or a hub id \(owner/name\); found no directory at /nowhere"
    ):
        results("none", "evaluation.gold=/nowhere", "name=nowhere")
    with pytest.raises(ConfigError, match=r"evaluation\.gold must be a directory or hub id with data\.source 'jsonl'"):
        execute(load_config({**mini, "name": "x", "method": {"name": "gold"}}, ["tracking.enabled=false"], plugin_schemas()))
