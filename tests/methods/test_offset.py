from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny import tiny_llama, tiny_tokenizer
from tests.toys import Toy, toy
from unlearn.assembly import select_weights
from unlearn.config.schema import ModelConfig, OptimConfig
from unlearn.errors import ConfigError
from unlearn.methods.offset import OffsetConfig
from unlearn.models.ensemble import ensemble_of
from unlearn.models.forward import forward
from unlearn.module import UnlearningModule
from unlearn.registry import find
from unlearn.restore import load_final
from unlearn.tracking.rundir import RunDirectory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("small")
    tiny_llama(d_model=16, layers=2, heads=2, seed=7).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def inner(name: str, **settings: object) -> object:
    return find("method", name).load().Config(name=name, **settings)


def test_the_sum_starts_as_the_model_itself(made: Toy, small: str) -> None:
    batch = made.batch()["forget"]
    with torch.no_grad():
        expected = forward(made.lm, batch).logits_AV
        for config in ({}, {"small": small}, {"blocks": 1, "alpha": 3.0}):
            torch.testing.assert_close(forward(made.ready("offset", **config)[0], batch).logits_AV, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_inner_methods_on_the_sum(made: Toy) -> None:
    lm, method = made.trained("offset", steps=3, lr=1e-2, alpha=2.0, inner=inner("grad_diff", forget_weight=0.5))
    batch = made.batch()

    def plain(part: str) -> torch.Tensor:
        """Stock forwards, put together by hand."""
        rows = batch[part]
        keep = rows.labels_BT[:, 1:] != -100
        given = {"input_ids": rows.input_ids_BT, "attention_mask": rows.attention_mask_BT}
        big = made.lm(**given).logits
        frozen, tuned = (s.head(s.decoder(**given, use_cache=False)[0]) for s in (method.frozen, method.tuned))
        logits = big + 2.0 * (tuned - frozen)
        return cross_entropy(logits[:, :-1][keep], rows.labels_BT[:, 1:][keep])

    with torch.no_grad():
        expected = -0.5 * plain("forget") + plain("retain")
        assert method.loss(lm, batch).total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_only_the_small_models_own_weights_are_trained(made: Toy, small: str) -> None:
    lm, method = made.ready("offset")
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert trained
    assert all(n.startswith("tuned.") and "embed" not in n for n in trained)
    assert {"tuned.head.weight", "tuned.decoder.norm.weight", "tuned.decoder.layers.1.mlp.down_proj.weight"} <= trained
    method.loss(lm, made.batch()).total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
    assert not any(p.requires_grad for p in lm.parameters())
    _, other = made.ready("offset", small=small)
    whole = sum(p.numel() for p in tiny_llama(d_model=16, layers=2, heads=2).parameters())
    assert sum(p.numel() for p in other.parameters() if p.requires_grad) == whole


def test_forgets_what_it_is_told_to(made: Toy, small: str) -> None:
    for config in ({}, {"small": small}):
        before, after = (
            {s: forward(lm, made.batch()[s]) for s in ("forget", "retain")}
            for lm in (made.lm, made.trained("offset", steps=12, lr=1e-2, **config)[0])
        )
        nll = [{s: cross_entropy(o.logits_AV, o.targets_A).item() for s, o in outs.items()} for outs in (before, after)]
        assert nll[1]["forget"] > nll[0]["forget"] + 1
        assert nll[1]["retain"] < nll[0]["retain"]


def test_install_puts_the_small_models_there_once(made: Toy) -> None:
    lm, method = made.trained("offset")
    batch = made.batch()["forget"]
    with torch.no_grad():
        expected = forward(lm, batch).logits_AV
        method.install(lm)
        torch.testing.assert_close(forward(lm, batch).logits_AV, expected)
        fresh = copy.deepcopy(made.lm)
        method.install(fresh)
        torch.testing.assert_close(forward(fresh, batch).logits_AV, expected)
    assert ensemble_of(lm) is not None


def test_restored_weights_answer_as_the_run_ended(made: Toy, tmp_path: Path) -> None:
    lm, method = made.trained("offset")
    weights = UnlearningModule(lm, method, OptimConfig()).final_state()
    assert weights
    assert all(name.startswith("method.tuned.") for name in weights)
    run = RunDirectory.create(tmp_path, "run")
    run.write_weights(weights)
    other = UnlearningModule(*made.ready("offset"), OptimConfig())
    load_final(other, run)
    batch = made.batch()["forget"]
    with torch.no_grad():
        torch.testing.assert_close(forward(other.lm, batch).logits_AV, forward(lm, batch).logits_AV)
        assert not torch.allclose(forward(other.lm, batch).logits_AV, forward(made.lm, batch).logits_AV)


def test_settings_that_do_not_fit_are_refused(made: Toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method.blocks must be fewer than the model's 4; found 4"):
        made.ready("offset", blocks=4)
    with pytest.raises(ConfigError, match="method.inner.name must be a method that forgets through the logits; found 'sae_guided'"):
        made.method("offset", inner=inner("sae_guided"))
    for key, value in (("blocks", 0), ("alpha", 0.0), ("alpha", float("inf")), ("small", " ")):
        with pytest.raises(ConfigError, match=f"method.{key} must be"):
            OffsetConfig(name="offset", **{key: value})
    from transformers import PreTrainedTokenizerFast

    other = tiny_tokenizer()
    other.add_tokens(["new"])
    tiny_llama(d_model=16, layers=1, heads=2).save_pretrained(tmp_path)
    PreTrainedTokenizerFast.save_pretrained(other, tmp_path)
    with pytest.raises(ConfigError, match="method.small must have the vocabulary of the model"):
        made.ready("offset", small=str(tmp_path))


def test_a_second_tokenizer_is_asked_for_only_where_there_is_one(made: Toy) -> None:
    cls = find("method", "offset").load()
    assert cls.required(OffsetConfig(name="offset")) == frozenset()
    assert cls.required(OffsetConfig(name="offset", small="x")) == {"rows"}
    assert cls.streams_of(OffsetConfig(name="offset")) == ("forget", "retain")


def test_the_model_is_frozen_before_setup(made: Toy) -> None:
    lm, report = select_weights(copy.deepcopy(made.lm), made.method("offset"), ModelConfig())
    assert report.n_parameters == 0
    assert not any(p.requires_grad for p in lm.parameters())
