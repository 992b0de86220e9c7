"""Training with the weights shared out over two processes, and what one process makes of the same configuration."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from tests.mini import make_mini
from tests.sharded import CASES, RANKS, Case, differs_by, on_two_ranks
from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError, Preempted, RunError
from unlearn.launch import check_sharded, trainer_settings
from unlearn.models.capture import capture
from unlearn.models.decoder import head, output_head
from unlearn.models.forward import forward, generate
from unlearn.models.sharded import Sharded, full, local
from unlearn.models.trainable import select_trainable
from unlearn.module import UnlearningModule
from unlearn.restore import restore
from unlearn.run import execute, resume
from unlearn.tracking.rundir import RunDirectory

TOLERANCE = 1e-5
STOPPED = Case("stopped", {"name": "grad_diff"}, ("trainer.checkpoint_every=0",))


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (RANKS,))


def _models() -> dict[str, nn.Module]:
    """Families with their own ways, trained in parts: tied and untied heads, learnt positions, adapters, frozen weights in between."""
    only = TrainableConfig(mode="modules", modules=["q_proj", "layernorm", "mlp"], blocks="1-2", embeddings=True)
    chosen = {
        "llama": (tiny_llama(), TrainableConfig(mode="full")),
        "llama in parts": (tiny_llama(seed=1), only),
        "tied llama": (tiny_llama(tie=True), TrainableConfig(mode="full")),
        "gemma 2": (tiny_gemma2(), TrainableConfig(blocks="1")),
        "gpt 2": (tiny_gpt2(), TrainableConfig(mode="full")),
        "lora": (tiny_llama(seed=2), TrainableConfig(mode="lora")),
    }
    models = {}
    for name, (lm, trainable) in chosen.items():
        models[name], _ = select_trainable(lm, ModelConfig(trainable=trainable, lora=LoRAConfig(rank=2)), None)
        for n, p in models[name].named_parameters():
            if "lora_B" in n:  # zero to begin with, which would hide the gradient of lora_A
                nn.init.normal_(p.data, std=0.1, generator=torch.Generator().manual_seed(1))
    return models


def _loss(lm: nn.Module, seed: int) -> torch.Tensor:
    """A loss through early exit, block outputs on the way, all logits, and the head called by itself."""
    batch = tiny_batch(seed=seed)
    early = capture(lm, batch, 1).square().mean()
    out = forward(lm, batch, layers=(-1, 2))
    alone = head(lm, out.hidden[2][:, 0]).logsumexp(-1).mean()
    nll = nn.functional.cross_entropy(out.logits_AV.float(), out.targets_A)
    return early + out.hidden[2].mean() + out.hidden[-1].square().mean() + 0.1 * alone + nll


def _steps(lm: nn.Module, close: Callable[[], None]) -> list[float]:
    """Three steps of AdamW with the gradients clipped, each after two backward passes and an early exit without a graph."""
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-3, eps=1e-5)
    losses = []
    for step in range(3):
        with torch.no_grad():
            capture(lm, tiny_batch(seed=10 + step), 0)
        for part in range(2):
            loss = _loss(lm, 2 * step + part)
            loss.backward()
            losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_([p for p in lm.parameters() if p.requires_grad], 0.5)
        losses.append(float(full(norm)))
        close()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def families() -> dict[str, dict[str, Any]]:
    """In each of two processes: how far a sharded model strays from its plain copy, and what it holds."""
    found: dict[str, dict[str, Any]] = {}
    for name, lm in _models().items():
        plain = copy.deepcopy(lm)
        shared = Sharded(lm, _mesh(), "32-true")
        before = all(torch.equal(a, b) for a, b in zip(shared.whole().parameters(), plain.parameters(), strict=True))
        wanted, got = _steps(plain, lambda: None), _steps(lm, shared.close)
        whole = shared.whole()
        tied = getattr(plain, "config", None) is not None and plain.config.tie_word_embeddings
        found[name] = {
            "the same before": before,
            "loss": max(abs(a - b) for a, b in zip(wanted, got, strict=True)),
            "weights": max(float((a - b).detach().abs().max()) for a, b in zip(whole.parameters(), plain.parameters(), strict=True)),
            "names": [n for n, _ in whole.named_parameters()] == [n for n, _ in plain.named_parameters()],
            "trained": [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in plain.parameters()],
            "tied": (next(iter(output_head(whole).parameters())) is whole.get_input_embeddings().weight) == bool(tied),  # type: ignore[operator]
            "share": sum(local(p).numel() for p in lm.parameters()) / sum(p.numel() for p in plain.parameters()),
        }
    return found


def shares() -> dict[str, float]:
    """Share of the numbers that this process holds of weights, gradients and optimiser state, all weights being trained."""
    lm = tiny_llama(d_model=64, layers=6)
    total = sum(p.numel() for p in lm.parameters())
    Sharded(lm, _mesh(), "32-true")
    optimizer = torch.optim.AdamW(lm.parameters())
    _loss(lm, 0).backward()
    optimizer.step()
    states = [s["exp_avg"].to_local().numel() + s["exp_avg_sq"].to_local().numel() for s in optimizer.state.values()]
    return {
        "weights": sum(local(p).untyped_storage().nbytes() for p in lm.parameters()) / (4 * total),
        "gradients": sum(local(p.grad).numel() for p in lm.parameters() if p.grad is not None) / total,
        "optimiser": sum(states) / (2 * total),
    }


def mixed() -> dict[str, Any]:
    """An fp32 model gathered in bfloat16, and fp32 adapters on a bfloat16 model, each beside its plain copy under autocast."""
    found = {}
    for name, dtype, mode in (("fp32 weights", torch.float32, "full"), ("fp32 adapters", torch.bfloat16, "lora")):
        lm, _ = select_trainable(tiny_llama().to(dtype), ModelConfig(trainable=TrainableConfig(mode=mode), lora=LoRAConfig(rank=2)), None)
        plain = copy.deepcopy(lm)
        shared = Sharded(lm, _mesh(), "bf16-mixed")
        with torch.autocast("cpu", torch.bfloat16):
            wanted, got = _steps(plain, lambda: None), _steps(lm, shared.close)
        kept = {n: p.dtype for n, p in shared.whole().named_parameters()}
        found[name] = {
            "loss": max(abs(a - b) / abs(a) for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if i % 3 < 2),
            "first": max(abs(a - b) / abs(a) for a, b in zip(wanted[:2], got[:2], strict=True)),
            "norm": max(abs(a - b) / abs(a) for a, b in zip(wanted[2::3], got[2::3], strict=True)),
            "dtypes": kept == {n: p.dtype for n, p in plain.named_parameters()},
            "trained in": sorted({str(p.dtype) for p in lm.parameters() if p.requires_grad}),
        }
    return found


def uneven() -> bool:
    """Whether processes may read the gathered copy each in batches of its own, and write texts from it."""
    from torch.distributed import get_rank

    lm = tiny_llama()
    plain = copy.deepcopy(lm)
    whole = Sharded(lm, _mesh(), "32-true").whole()
    from tests.tiny import tiny_tokenizer

    prompts = [[1, 5, 6], [1, 7]][: 1 + get_rank()]
    same = [generate(m, tiny_tokenizer(), prompts, 3 + get_rank(), batch_size=1) for m in (whole, plain)]
    return same[0] == same[1]


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
        assert set(found) == set(_models())
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
    for found in runs.mixed:
        assert set(found) == {"fp32 weights", "fp32 adapters"}
        for one in found.values():
            # autocast keeps norms and sums in fp32, a model gathered in bfloat16 does not; the steps of AdamW widen the gap
            assert one["first"] <= 0.02, one
            assert one["loss"] <= 0.1, one
            assert one["norm"] <= 0.15, one
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
