"""The memory estimate beside what PyTorch's allocator gives out on a GPU, for models of a realistic shape."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule

from tests.gpu.device import ACCELERATOR, DEVICE, REHEARSAL, note
from tests.scripts import module_of
from unlearn.estimate.memory import CUDA_CONTEXT
from unlearn.launch import make_trainer, trainer_settings

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 32000}
"""As Llama 3.2 1B's, with a smaller vocabulary: a billion weights."""
TOLERANCE = 0.1
"""Largest relative error of the estimate."""


study = module_of("experiments/memory/measure.py")
GUIDED, LORA, BF16 = "method.name=sae_guided", "model.trainable.mode=lora", "model.dtype=bfloat16"
ON_GPU = f"trainer.accelerator={ACCELERATOR}"
BIG = {"rows": 8, "tokens": 128, "model_options": {} if REHEARSAL else SHAPE}
CASES = {
    "llama lora sae_guided bf16": study.Case("llama", (GUIDED, LORA, BF16, ON_GPU), sae=("jumprelu", 16384), **BIG),
    "llama blocks grad_diff": study.Case("llama", ("method.name=grad_diff", ON_GPU), **BIG),
    "llama full npo mixed": study.Case(
        "llama", ("method.name=npo", "model.trainable.mode=full", "trainer.precision=bf16-mixed", ON_GPU), **BIG
    ),
    "gemma2 lora sae_guided bf16": study.Case("gemma2", (GUIDED, LORA, BF16, ON_GPU), sae=("jumprelu", 16384), **BIG),
    "llama full grad_diff accumulate": study.Case(
        "llama", ("method.name=grad_diff", "model.trainable.mode=full", "trainer.accumulate=2", ON_GPU), **{**BIG, "rows": 4}
    ),
}


class Peak(Callback):
    """Peak of the allocator's bytes from the second step on, when the optimiser's state is there."""

    def __init__(self) -> None:
        self.bytes = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == trainer.accumulate_grad_batches and not REHEARSAL:
            torch.cuda.reset_peak_memory_stats()

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.bytes = 0 if REHEARSAL else torch.cuda.max_memory_allocated()


def measured(case: Any, folder: Path) -> int:
    """Bytes of the model, its SAE, banks and what three steps of training add at their peak."""
    gc.collect()
    before = 0 if REHEARSAL else torch.cuda.memory_allocated()
    module, batches = study.objects(case, folder, DEVICE)
    config, peak = study.configuration(case), Peak()
    active = {s: batches[s] for s in module.method.streams_of(module.method.config)}
    loader: Any = torch.utils.data.DataLoader([active] * (3 * config.trainer.accumulate), batch_size=None)  # type: ignore[arg-type]

    class Same(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader

        def micro_batches(self, step: int) -> list[Any]:
            return [active] * config.trainer.accumulate

    optim = replace(config.optim, steps=3)
    make_trainer(config.trainer, optim, [peak], [], trainer_settings(config.trainer)).fit(module, datamodule=Same())
    return peak.bytes - before


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_the_allocator_gives_out(name: str, tmp_path: Path) -> None:
    guess = study.estimated(CASES[name], on_gpu=True)
    wanted = sum(guess.device.values()) - CUDA_CONTEXT
    found = measured(CASES[name], tmp_path)
    if REHEARSAL:
        found = wanted
    note("memory", case=name, measured_mib=found / 2**20, estimated_mib=wanted / 2**20, error=wanted / found - 1)
    assert wanted == pytest.approx(found, rel=TOLERANCE)
