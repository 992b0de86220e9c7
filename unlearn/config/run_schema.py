"""Sections about rows, method, optimisation, devices, measurement and tracking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from unlearn.config.checks import check, one_of
from unlearn.config.secrets import hide_secrets, holds_password


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Rows of each stream in one optimiser step, over all devices together."""

    forget: int = 32
    """rows of the forget stream, >= 1"""
    retain: int = 32
    """rows of the retain stream, >= 1"""
    known: int = 32
    """rows of the known-anchor stream, >= 1"""
    unknown: int = 32
    """rows of the unknown-anchor stream, >= 1"""

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "known", "unknown"):
            check(getattr(self, name) >= 1, f"data.batch.{name}", ">= 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Fields every data source has; a source adds its own."""

    source: str = MISSING
    """name of the data source; `unlearn list sources` shows them"""
    partition: str = "test"
    """test, or validation: other entities and wordings, cut out of what the test trains on; tuning sees nothing that the test measures"""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """rows of each stream in one optimiser step"""
    max_length: int = 512
    """longest row in tokens; a longer one is an error, never cut silently"""
    question_format: str = "Question: {question}\nAnswer:"
    """text around a question; must contain {question}"""
    answer_separator: str = " "
    """text between prompt and answer"""
    answer_end: str = ""
    """text after the answer"""
    append_eos: bool = True
    """whether the end-of-sequence token follows the answer"""

    def __post_init__(self) -> None:
        one_of(self.partition, ("test", "validation"), "data.partition")
        check(self.max_length >= 2, "data.max_length", ">= 2", self.max_length)
        check("{question}" in self.question_format, "data.question_format", "a text that contains {question}", self.question_format)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Fields every method has; a method adds its own."""

    FREE_TEXT: ClassVar[frozenset[str]] = frozenset({"name"})
    """fields of type str that take any text; every other one must refuse what it does not know"""

    name: str = MISSING
    """name of the method; `unlearn list methods` shows them"""


OPTIMISERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: str = "adamw"
    """adamw; through bitsandbytes adamw_8bit, paged_adamw, paged_adamw_8bit (states in 8 bits; moved to the CPU when memory is short)"""
    steps: int = 60
    """optimiser steps, >= 0"""
    lr: float = 5e-4
    """peak learning rate, > 0"""
    weight_decay: float = 0.0
    """AdamW weight decay, >= 0"""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW betas"""
    warmup_steps: int = 0
    """steps of linear warm-up, >= 0"""
    schedule: str = "constant"
    """constant, linear or cosine (to zero), after the warm-up"""
    clip: float = 1.0
    """largest gradient norm, >= 0; 0 turns clipping off"""

    def __post_init__(self) -> None:
        one_of(self.name, OPTIMISERS, "optim.name")
        check(self.steps >= 0, "optim.steps", ">= 0", self.steps)
        check(self.lr > 0, "optim.lr", "> 0", self.lr)
        check(self.weight_decay >= 0, "optim.weight_decay", ">= 0", self.weight_decay)
        check(self.warmup_steps >= 0, "optim.warmup_steps", ">= 0", self.warmup_steps)
        check(self.clip >= 0, "optim.clip", ">= 0", self.clip)
        check(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "optim.betas", "two numbers in [0, 1)", self.betas)
        one_of(self.schedule, ("constant", "linear", "cosine"), "optim.schedule")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What goes to Lightning's Trainer; null takes what the launcher set (LT_*), else Lightning's choice."""

    accelerator: str | None = None
    """cpu, gpu, auto, ..."""
    devices: str | None = None
    """number of devices per node, or a list such as 0,1"""
    num_nodes: int | None = None
    """number of nodes, >= 1"""
    strategy: str | None = None
    """auto, ddp, ddp_find_unused_parameters_true, ..., or fsdp2: weights, gradients and optimiser state are shared out over all devices"""
    read_on: str = "device"
    """where the model is in one piece before and after training: device (each must hold its weights once) or cpu (slow; needs fsdp2)"""
    precision: str | None = None
    """32-true, bf16-mixed, ..."""
    accumulate: int = 1
    """micro-batches in one optimiser step, >= 1: less memory and more forward passes, the same loss and gradient"""
    progress_bar: bool = True
    """whether a progress bar is shown"""
    checkpoint_every: int = 0
    """steps between checkpoints; 0 keeps the last one only"""
    threads: int = 0
    """CPU threads for torch; 0 leaves torch's choice"""
    start_timeout: float = 7200.0
    """seconds that the processes of a launch wait for the first one to prepare a run (folder, models, caches), > 0"""

    def __post_init__(self) -> None:
        one_of(self.read_on, ("device", "cpu"), "trainer.read_on")
        check(self.start_timeout > 0, "trainer.start_timeout", "> 0", self.start_timeout)
        check(self.num_nodes is None or self.num_nodes >= 1, "trainer.num_nodes", ">= 1", self.num_nodes)
        check(self.accumulate >= 1, "trainer.accumulate", ">= 1", self.accumulate)
        check(self.checkpoint_every >= 0, "trainer.checkpoint_every", ">= 0", self.checkpoint_every)
        check(self.threads >= 0, "trainer.threads", ">= 0", self.threads)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the callbacks measure, and how often."""

    every: int = 10
    """steps between latent-distance measurements during training; 0 measures before and after only"""
    batch_size: int = 128
    """rows of one evaluation forward, >= 1"""
    max_new_tokens: int = 32
    """longest generated answer in tokens, >= 1"""
    bootstrap: int = 1000
    """bootstrap resamples of the intervals, >= 0; 0 gives none"""
    permutations: int = 200
    """permutations of the MMD test, >= 1"""
    null_draws: int = 100
    """draws of two unknown groups that give the C2ST interval, >= 0"""
    samples: int = 8
    """prompts whose answers are kept before and after, >= 0"""
    gold: str | None = None
    """model that never saw the forget entities: `source` (the one the data source brings along), a directory or a hub id; null for none"""
    places: bool = False
    """whether recognition is also tested at other blocks, at the answer, in SAE latents and in a second SAE"""
    depth: bool = False
    """whether the depth of forgetting is measured at the end (activation patching); loads the original model once more"""
    collapse_perplexity: float = 1.5
    """generic perplexity above this multiple of the base model's raises the collapse flag, > 1"""
    collapse_retain: float = 0.5
    """retain accuracy at or below this share of the base model's raises the collapse flag, in [0, 1]"""

    def __post_init__(self) -> None:
        for name, low in (
            ("every", 0),
            ("batch_size", 1),
            ("max_new_tokens", 1),
            ("bootstrap", 0),
            ("permutations", 1),
            ("null_draws", 0),
            ("samples", 0),
        ):
            check(getattr(self, name) >= low, f"evaluation.{name}", f">= {low}", getattr(self, name))
        check(self.collapse_perplexity > 1, "evaluation.collapse_perplexity", "> 1", self.collapse_perplexity)
        check(0 <= self.collapse_retain <= 1, "evaluation.collapse_retain", "in [0, 1]", self.collapse_retain)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """whether an MLflow run is made"""
    uri: str | None = None
    """tracking store, without a password; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder"""
    experiment: str = "unlearn"
    """MLflow experiment"""

    def __post_init__(self) -> None:
        check(
            self.uri is None or not holds_password(self.uri),
            "tracking.uri",
            "an address without a password, which belongs into the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "PGPASSWORD, or the whole address as MLFLOW_TRACKING_URI)",
            hide_secrets(str(self.uri)),
        )
