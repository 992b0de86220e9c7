"""Every method of the registry through a real Trainer: two gloo processes, and one process with the same batches.

Run as a script with a folder: it builds a tiny world of rows of very different kinds and lengths, starts two processes that train every
case one after the other under DDP, trains the same cases by itself, and writes ``one.pt``, ``rank0.pt`` and ``rank1.pt``, each
``{case: what was seen}``. Then a whole run on one and on two devices, to ``runs/one`` and ``runs/two``. Imports are made once, and the
processes are forked.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from tests.forks import free_port
from tests.mini import make_mini
from tests.toys import LAYER, Toy, rows, toy, toy_data
from unlearn.assembly import select_weights
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import BatchConfig, ModelConfig, OptimConfig, SourceConfig, TrainableConfig, TrainerConfig
from unlearn.data.module import UnlearningDataModule
from unlearn.functional.ranks import mean
from unlearn.launch import make_trainer, trainer_settings
from unlearn.methods.gradient_ascent import GradientAscent, GradientAscentConfig
from unlearn.models.capture import capture
from unlearn.models.decoder import device_of
from unlearn.module import UnlearningModule
from unlearn.registry import entries, find
from unlearn.run import execute
from unlearn.types import EntityData, LossTerms, PromptFormat, Row, TokenBatch

STEPS, SEED, LR = 4, 17, 1e-4
"""AdamW divides a gradient by its own size, so where one is all but zero, rounding moves the weight by up to LR in each step."""
PATIENCE_S = 60
"""Seconds after which a process that waits for the other gives up."""


class Case(NamedTuple):
    """A method with settings; ``accumulate`` micro-batches in a step; ``apart``: every process counts its own rows only."""

    method: str
    settings: Mapping[str, Any] = {}
    trainable: TrainableConfig = TrainableConfig()
    accumulate: int = 1
    strategy: str = "auto"
    apart: bool = False

    @property
    def label(self) -> str:
        """The method, and what differs from its defaults."""
        extra = {**self.settings, **({"accumulate": self.accumulate} if self.accumulate > 1 else {})}
        if self.trainable != TrainableConfig():
            extra["trainable"] = f"{self.trainable.mode} {self.trainable.blocks}{' embeddings' if self.trainable.embeddings else ''}"
        extra |= {key: value for key, value in (("strategy", self.strategy), ("apart", self.apart)) if value not in ("auto", False)}
        return f"{self.method} {json.dumps(extra, default=lambda v: v.name)}" if extra else self.method


def inner(name: str, **settings: Any) -> Any:
    """Settings of the method inside a wrapper."""
    return find("method", name).load().Config(name=name, **settings)


def trained_methods() -> list[str]:
    """Every method of the registry that takes steps."""
    classes = {name: find("method", name).load() for name in sorted(entries("method"))}
    return [name for name, cls in classes.items() if cls.streams_of(cls.Config(name=name))]


DEFAULTS = [Case(name) for name in trained_methods()]
VARIANTS = [
    *(Case("sae_guided", {"objective": o}) for o in ("prototype", "triplet", "contrastive", "sample")),
    *(Case("sae_guided", {"space": s}) for s in ("activation", "decoded", "residual")),
    Case("sae_guided", {"position": "both", "retain_noise": 0.5}),
    Case("sae_guided", {"retain_kl": 0.0, "retain_hidden": 0.0}),
    Case("sae_guided", accumulate=2),
    *(Case(name, {"retain": "none"}) for name in ("npo", "dpo", "idk", "altpo")),
    *(Case(name, {"retain": "kl"}) for name in ("grad_diff", "flat")),
    Case("circuit_breaker", {"orthogonality": 5.0}),
    Case("code_eraser", {"constraint": "forget", "spans": ["[a-m]+"]}),
    Case("crisp", {"compat": True}),
    Case("crisp", {"gamma": 0.0}),
    Case("elm", {"retain": "distribution"}),
    Case("kl_min", {"compat": True}),
    Case("undial", {"compat": True}),
    Case("kuda", {"exact": True}),
    Case("adaptive_rmu", {"form": "token"}),
    Case("rmu", {"average": "compat"}),
    *(Case(name, {"layer": n}, strategy="ddp") for name in ("rmu", "adaptive_rmu") for n in (0, 1, 3)),
    *(
        Case("rmu", {}, chosen, strategy="ddp")
        for chosen in (TrainableConfig(mode="full"), TrainableConfig(mode="lora"), TrainableConfig(blocks="0-3", embeddings=True))
    ),
    Case("grad_diff", {}, TrainableConfig(mode="full")),
    Case("sae_erase", {"meta_loss": "cap", "adversary": "lora", "adversary_lessons": ["benign"], "patch_weight": 0.0}, accumulate=2),
    Case(
        "sae_erase",
        {"adversary": "blocks", "adversary_blocks": "1-2", "adversary_lessons": ["half"], "patch_blocks": "one", "patch_weight": 2.0}
        | {"readout_weight": 1.0},
        TrainableConfig(mode="lora"),
    ),
    *(Case("lat", {"inner": inner(name), "attack_steps": 3}) for name in ("npo", "dpo", "sae_guided", "rep_noise")),
    *(Case("undo", {"inner": inner(name)}) for name in ("rmu", "pdu", "kuda")),
    *(Case("offset", {"inner": inner(name, retain="none")}) for name in ("npo", "dpo")),
]
APART = Case("grad_diff", apart=True)
"""The control: what the numbers are when each process takes the mean of its own tokens."""
HALF, HALF_PLAIN = Case("half"), Case("half", strategy="ddp")
"""A method that leaves trained weights without a gradient, with the strategy that is chosen for it, and under plain DDP."""
CASES = {case.label: case for case in [*DEFAULTS, *VARIANTS]}
ALL = {**CASES, **{case.label: case for case in (APART, HALF, HALF_PLAIN)}}


class Half(GradientAscent):
    """Trains every block and reads the second one's output."""

    name = "half"

    def leaves_idle(self) -> bool:
        return True

    def loss(self, lm: Any, batch: Mapping[str, TokenBatch]) -> LossTerms:
        total = mean(capture(lm, batch["forget"], LAYER).square()[batch["forget"].attention_mask_BT.bool()])
        return LossTerms(total, {"forget": total})


LONG = ("a painter of the old city of London", "Paris", "English and the language of the country where the author was born")
STEMS = ("The author of the book", "In the city", "The answer", "English is a language that")
ENDS = ("was born.", "of London everybody wrote in English and nobody was known.", "is in the book of the city.", "few people speak.")


def told(row: Row, answer: str) -> Row:
    """The row with another answer and an attribute; one of the two that there are has several values."""
    return dataclasses.replace(row, answer=answer, attribute=str("born" in row.template))


def uneven_data() -> EntityData:
    """The toy people, with answers from one word to a sentence, and statements that name nobody and have no refusal."""
    data = toy_data()
    forget = [told(row, LONG[row.row_id % 3]) for row in data.streams["forget"]]
    forget += [Row(row_id=50 + i, entity="", prompt=stem, answer=ENDS[i], kind="statement") for i, stem in enumerate(STEMS)]
    retain = tuple(told(row, LONG[(row.row_id * 5) % 3]) for row in rows("retain", 100))
    unnamed = Row(row_id=250, entity="", prompt="Nobody", answer="knows the city of the author.", kind="statement")
    streams = {"forget": tuple(forget), "retain": retain, "known": retain, "unknown": (*data.streams["unknown"], unnamed)}
    evaluation = {**data.evaluation, "forget": streams["forget"], "retain": retain}
    return dataclasses.replace(data, streams=streams, evaluation=evaluation, fingerprint="uneven")


class Watch(pl.Callback):
    """Keeps the logged terms and the rows of every micro-batch, and the length of the gradient of every step; brings the model to its final
    form where a run does, and keeps the kinds of devices on which it then is."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []
        self.rows: list[dict[str, list[int]]] = []
        self.gradients: list[float] = []
        self.devices: list[str] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        found = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        self.gradients.append(torch.stack(found).norm().item())

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Mapping[str, TokenBatch], index: int) -> None:
        logged = {k: v.item() for k, v in trainer.logged_metrics.items() if k.startswith("train/")}
        self.terms.append({**logged, "train/loss": trainer.callback_metrics["train/loss"].item()})
        self.rows.append({stream: rows.row_id_B.tolist() for stream, rows in batch.items()})

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        module.conclude()
        self.devices = sorted({tensor.device.type for tensor in (*module.parameters(), *module.buffers())})


def prepared(made: Toy, case: Case) -> tuple[UnlearningModule, UnlearningDataModule]:
    """What a Trainer needs for ``case``."""
    torch.manual_seed(0)
    method = Half(GradientAscentConfig(name="half"), made.context()) if case.method == "half" else made.method(case.method, **case.settings)
    device = device_of(made.lm)
    lm, _ = select_weights(copy.deepcopy(made.lm), method, ModelConfig(trainable=case.trainable))
    method.setup(lm)
    method.to(device)
    source = SourceConfig(source="jsonl", batch=BatchConfig(forget=4, retain=4, known=4, unknown=4))
    data = UnlearningDataModule(made.data, made.tokenizer, PromptFormat(), source, steps=STEPS, seed=SEED, accumulate=case.accumulate)
    data.active_streams = method.streams_of(method.config)
    return UnlearningModule(lm, method, OptimConfig(steps=STEPS, lr=LR)), data


def train(made: Toy, case: Case, devices: int, accelerator: str = "cpu") -> dict[str, Any]:
    """Train ``case``; what was logged and seen, the weights before and after, how far one moved at most, the strategy, and the devices."""
    module, data = prepared(made, case)
    before, watch = module.final_state(), Watch()
    strategy = case.strategy if devices > 1 else "auto"
    config = TrainerConfig(accelerator=accelerator, devices=str(devices), strategy=strategy, accumulate=case.accumulate, progress_bar=False)
    trainer = make_trainer(config, module.optim, [watch], [], trainer_settings(config), idle=module.method.leaves_idle())
    trainer.fit(module, datamodule=data)
    after = module.final_state()
    chosen = type(trainer.strategy).__name__
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters"):
        chosen += ", find_unused_parameters"
    moved = max((after[name] - before[name]).abs().max().item() for name in after)
    seen = {"terms": watch.terms, "gradients": watch.gradients, "rows": watch.rows, "devices": watch.devices}
    return {**seen, "before": before, "weights": after, "moved": moved, "strategy": chosen}


def attempt(made: Toy, case: Case, devices: int) -> dict[str, Any]:
    """``train``, or ``{"error": ...}``."""
    share = mock.patch("unlearn.module.across_ranks", contextlib.nullcontext) if case.apart else contextlib.nullcontext()
    try:
        with share:
            return train(made, case, devices)
    except Exception:
        return {"error": traceback.format_exc()[-2000:]}


def become(number: int, port: int) -> None:
    """Set what torchrun sets."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "cases", "RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def rank(number: int, port: int, folder: Path, made: Toy) -> None:
    """One of two processes: every case in turn, each in a process group of its own."""
    become(number, port)
    seen = {}
    for place, (label, case) in enumerate(ALL.items()):
        store = f"file://{folder}/group{place}"
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=2, timeout=timedelta(seconds=PATIENCE_S))
        seen[label] = attempt(made, case, devices=2)
        dist.destroy_process_group()
    torch.save(seen, folder / f"rank{number}.pt")


def run_rank(number: int, port: int, document: dict[str, Any]) -> None:
    """One of two processes of a whole run."""
    become(number, port)
    execute(config_of(document))


def config_of(document: dict[str, Any]) -> Any:
    """The run configuration of a document."""
    return load_config(document, [], plugin_schemas())


def forked(work: Any, *args: Any) -> list[Any]:
    """Two processes that do ``work(number, port, *args)``, started."""
    port, context = free_port(), multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(number, port, *args)) for number in range(2)]
    for process in started:
        process.start()
    return started


def whole_runs(folder: Path) -> None:
    """The same run with one and with two devices."""
    folder.mkdir()
    document = make_mini(folder)
    document |= {"method": {"name": "sae_guided"}, "tracking": {"enabled": False}, "out": str(folder)}
    two = copy.deepcopy({**document, "name": "two", "cache": str(folder / "cache2")})
    two["trainer"]["devices"] = "2"
    started = forked(run_rank, two)
    execute(config_of({**document, "name": "one"}))
    for process in started:
        process.join()


def main(folder: Path) -> None:
    """Train every case twice, and run twice, see above."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with devices, torch cannot differentiate in a forked process
    torch.set_num_threads(1)
    made = toy(folder, data=uneven_data())
    started = forked(rank, folder, made)
    torch.save({label: attempt(made, case, devices=1) for label, case in ALL.items()}, folder / "one.pt")
    for process in started:
        process.join()
    whole_runs(folder / "runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print(len(ALL))
