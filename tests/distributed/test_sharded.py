"""Training with the weights shared out over two processes, and what one process makes of the same configuration."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.distributed.sharded_models import families, mixed, models, shares, uneven
from tests.mini import make_mini
from tests.sharded import CASES, RANKS, Case, differs_by, on_two_ranks
from unlearn.errors import ConfigError, Preempted, RunError
from unlearn.launch import check_sharded, trainer_settings
from unlearn.models.sharded import local
from unlearn.module import UnlearningModule
from unlearn.restore import restore
from unlearn.run import execute, resume
from unlearn.tracking.rundir import RunDirectory

TOLERANCE = 1e-5
STOPPED = Case("stopped", {"name": "grad_diff"}, ("trainer.checkpoint_every=0",))


def preempted(mini: dict[str, Any]) -> str:
    """A run in which one of the two processes gets SIGTERM in its third step."""
    step = UnlearningModule.training_step

    def told(self: UnlearningModule, batch: Any, index: int) -> Any:
        if index == 2 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    with mock.patch.object(UnlearningModule, "training_step", told), pytest.raises(Preempted):
        execute(STOPPED.sharded(mini))
    return "stopped"


def spoiled(mini: dict[str, Any]) -> str:
    """What a run says in which the loss of one of the two processes is infinite."""
    step = UnlearningModule.training_step

    def bad(self: UnlearningModule, batch: Any, index: int) -> Any:
        return step(self, batch, index) * (float("inf") if index == 1 and self.global_rank == 1 else 1.0)

    with mock.patch.object(UnlearningModule, "training_step", bad), pytest.raises(RunError) as found:
        execute(Case("spoiled", {"name": "npo"}).sharded(mini))
    return str(found.value)


def overflowing(mini: dict[str, Any]) -> str:
    """What a run says in which one gradient is not finite in one of the two processes."""

    def bad(self: UnlearningModule) -> None:
        if self.trainer.global_step == 1 and self.global_rank == 1:
            next(p.grad for p in self.lm.parameters() if p.grad is not None and local(p.grad).numel()).to_local()[0] = float("nan")

    with mock.patch.object(UnlearningModule, "on_after_backward", bad), pytest.raises(RunError) as found:
        execute(Case("overflowing", {"name": "npo"}).sharded(mini))
    return str(found.value)


@dataclass(frozen=True)
class Runs:
    """Everything that was run."""

    out: Path
    families: list[dict[str, dict[str, Any]]]
    shares: list[dict[str, float]]
    mixed: list[dict[str, dict[str, Any]]]
    uneven: list[bool]
    resumed: list[str]
    said: dict[str, list[str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sharded")
    mini = make_mini(folder)
    for case in (*CASES, STOPPED):
        execute(case.config(mini))
    whole = [partial(lambda c: str(execute(c.sharded(mini))), case) for case in (*CASES, STOPPED)]
    first = on_two_ranks([*whole, families, shares, mixed, uneven], folder / "first")
    (folder / "runs" / "stopped_sharded").rename(folder / "runs" / "unstopped_sharded")
    on_two_ranks([partial(preempted, mini)], folder / "second")
    state = RunDirectory.open(folder / "runs" / "stopped_sharded").checkpoints / "last.ckpt"
    torch.save(torch.load(state, weights_only=True), folder / "stopped.pt")
    third = on_two_ranks([lambda: str(resume(folder / "runs" / "stopped_sharded")), partial(spoiled, mini)], folder / "third")
    fourth = on_two_ranks([partial(overflowing, mini)], folder / "fourth")
    return Runs(folder / "runs", *first[-4:], third[0], {"loss": third[1], "gradient": fourth[0]})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_train_what_one_does(runs: Runs, case: Case) -> None:
    found = differs_by(runs.out / case.name, runs.out / f"{case.name}_sharded")
    assert found["loss"] <= TOLERANCE
    assert found["weights"] <= TOLERANCE
    assert found["moved"] > 100 * TOLERANCE
    assert found["results"] <= 1e-3


@pytest.mark.slow
def test_every_family_computes_the_same_with_its_weights_shared_out(runs: Runs) -> None:
    for found in runs.families:
        assert set(found) == set(models())
        for name, one in found.items():
            assert one["loss"] <= TOLERANCE, name
            assert one["weights"] <= TOLERANCE, name
            assert all(one[what] for what in ("the same before", "names", "trained", "tied")), (name, one)
            assert one["share"] == pytest.approx(0.5, abs=0.01), name


@pytest.mark.slow
def test_a_process_holds_half_of_everything(runs: Runs) -> None:
    assert len(runs.shares) == RANKS
    for found in runs.shares:
        assert found == pytest.approx({"weights": 0.5, "gradients": 0.5, "optimiser": 0.5}, abs=0.01)


@pytest.mark.slow
def test_bfloat16_is_for_computing_and_weights_stay_in_what_they_are_kept_in(runs: Runs) -> None:
    """A forward pass does the same operations in the same order, so its loss is the same number. A gradient that several passes through one
    weight add up is rounded to bfloat16 (8 bits, so by up to 2^-9 of it on either side) in the order in which they arrive, which is not
    the same: 2^-8. AdamW turns what is rounding into steps of its own, which doubles it: 2^-7."""
    for found in runs.mixed:
        assert set(found) == {"fp32 weights", "fp32 adapters"}
        for one in found.values():
            assert one["first losses"] == 0.0, one
            assert one["first norm"] <= 2**-8, one
            assert one["later"] <= 2**-7, one
            assert one["dtypes"]
            assert one["trained in"] == ["torch.float32"]


@pytest.mark.slow
def test_processes_read_the_whole_model_each_in_its_own_way(runs: Runs) -> None:
    assert runs.uneven == [True, True]


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(runs: Runs) -> None:
    stopped = torch.load(runs.out.parent / "stopped.pt", weights_only=True)
    assert stopped["global_step"] == 3
    a, b = (RunDirectory.open(runs.out / name).read_weights() for name in ("stopped_sharded", "unstopped_sharded"))
    assert a.keys() == b.keys() == {k for k in stopped["state_dict"] if not k.endswith("_extra_state")}
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(stopped["state_dict"][name].shape == a[name].shape for name in a)
    assert differs_by(runs.out / "stopped", runs.out / "stopped_sharded")["loss"] <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES if "lora" in case.name or "full" in case.name][:2])
def test_one_process_restores_the_run(runs: Runs, name: str) -> None:
    path = runs.out / f"{name}_sharded"
    kept = json.loads((path / "results.json").read_text())
    assembly = restore(path)
    weights = RunDirectory.open(path).read_weights()
    trained = {n: p for n, p in assembly.module.named_parameters() if p.requires_grad}
    assert trained.keys() == weights.keys()
    assert all(torch.equal(p, weights[n]) for n, p in trained.items())
    again = assembly.suite.measure(assembly.module.lm).results
    numbers = {k: v for k, v in again.items() if isinstance(v, float) and v == v and k in kept}
    assert len(numbers) > 20
    assert numbers == pytest.approx({k: kept[k] for k in numbers}, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES if "lora" in case.name or "full" in case.name][:2])
def test_one_process_exports_the_run(runs: Runs, name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from unlearn.export import export

    done = export(str(runs.out / f"{name}_sharded"), tmp_path / "out")
    assert done.form == ("merged" if "lora" in name else "whole")
    ids = torch.arange(5, 65).reshape(3, 20)
    lm: Any = restore(runs.out / f"{name}_sharded").module.lm
    with torch.no_grad():
        wanted, got = lm(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (wanted - got).abs().max() <= (1e-4 if done.form == "merged" else 0.0) * wanted.abs().max()


@pytest.mark.slow
def test_one_process_with_a_bad_loss_or_gradient_stops_both(runs: Runs) -> None:
    assert all("train/loss at step 1 must be finite" in text for text in runs.said["loss"])
    assert all("The gradient at step 1 must be finite" in text for text in runs.said["gradient"])
    for name in ("spoiled", "overflowing"):
        kept = torch.load(runs.out / f"{name}_sharded" / "checkpoints" / "last_good.ckpt", weights_only=True)
        assert kept["global_step"] == 1
        assert all(torch.isfinite(value).all() for value in kept["state_dict"].values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("trainer.strategy=fsdp",), r"trainer\.strategy must be fsdp2 .*; found 'fsdp'"),
        (("trainer.strategy=fsdp2", "trainer.precision=16-mixed"), r"trainer\.precision .* 32-true.*; found '16-mixed'"),
        (
            ("trainer.strategy=ddp", "trainer.read_on=cpu"),
            r"trainer\.read_on must be device unless .*; found '?cpu",
        ),
        (("trainer.strategy=fsdp2", "method.name=kuda"), r"trainer\.strategy must not be fsdp2 with method\.name 'kuda'"),
        (("trainer.strategy=fsdp2", "method.name=undo"), r"trainer\.strategy must not be fsdp2 with method\.name 'undo'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path: Path, changes: tuple[str, ...], words: str) -> None:
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas

    given = {"name": "x", "out": str(tmp_path), "data": {"source": "jsonl", "path": "nowhere.jsonl"}, "model": {"path": "./nowhere"}}
    name = next((c.split("=")[1] for c in changes if c.startswith("method.name=")), "npo")
    config = load_config({**given, "method": {"name": name}}, [c for c in changes if not c.startswith("method")], plugin_schemas())
    with pytest.raises(ConfigError, match=words):
        check_sharded(trainer_settings(config.trainer, {}), config)
    with pytest.raises(ConfigError, match=words):
        execute(config)


def test_other_strategies_take_every_method(tmp_path: Path) -> None:
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas

    given = {"name": "x", "out": str(tmp_path), "data": {"source": "jsonl", "path": "nowhere.jsonl"}, "method": {"name": "kuda"}}
    config = load_config({**given, "trainer": {"strategy": "ddp", "precision": "16-mixed"}}, [], plugin_schemas())
    check_sharded(trainer_settings(config.trainer, {}), config)
