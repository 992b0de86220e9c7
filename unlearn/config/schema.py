"""The skeleton of a run's configuration. A string under a field is its documentation and its ``--help-config`` line.

Defaults live here and nowhere else; a YAML file states only what differs. Plug-in sections (``data``, ``method``) are typed by
the plug-in that ``data.source`` or ``method.name`` names: their dataclasses stand beside their owners.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from unlearn.config.checks import check, one_of


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
        check(self.max_length >= 2, "data.max_length", ">= 2", self.max_length)
        check("{question}" in self.question_format, "data.question_format", "a text that contains {question}", self.question_format)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Fields every method has; a method adds its own."""

    name: str = MISSING
    """name of the method; `unlearn list methods` shows them"""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters through peft."""

    rank: int = 16
    """rank of the adapters, >= 1"""
    alpha: float = 16.0
    """scale of the adapters, > 0"""
    dropout: float = 0.0
    """dropout on the adapters' input, in [0, 1)"""
    rslora: bool = False
    """scale by alpha / sqrt(rank) instead of alpha / rank"""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    """names of the linear modules that get an adapter"""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "model.lora.rank", ">= 1", self.rank)
        check(self.alpha > 0, "model.lora.alpha", "> 0", self.alpha)
        check(0 <= self.dropout < 1, "model.lora.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """Which weights of the language model are trained."""

    mode: str = "blocks"
    """blocks (whole decoder blocks), modules (parameter names that match a pattern), lora, or full"""
    blocks: str = "auto"
    """auto (every block up to the deepest that the method's forgetting term reaches), all, or a list such as 0-5,8"""
    modules: list[str] = field(default_factory=lambda: [".*"])
    """regular expressions, searched in parameter names (mode modules: within `blocks`)"""
    embeddings: bool = False
    """whether token embeddings and the output head are trained too"""

    def __post_init__(self) -> None:
        one_of(self.mode, ("blocks", "modules", "lora", "full"), "model.trainable.mode")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model."""

    path: str | None = None
    """local directory or hub id; null takes the model that the data source brings along"""
    revision: str | None = None
    """hub revision: a branch, tag or commit"""
    tokenizer: str | None = None
    """local directory or hub id of the tokenizer; null takes the model's"""
    dtype: str = "float32"
    """weights: float32, bfloat16 or float16"""
    attention: str | None = None
    """attention implementation: eager, sdpa, flash_attention_2; null leaves the choice to transformers"""
    trust_remote_code: bool = False
    """whether code from the hub may run; off unless you ask"""
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    """which weights are trained"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """adapters, used with trainable.mode lora"""

    def __post_init__(self) -> None:
        one_of(self.dtype, ("float32", "bfloat16", "float16"), "model.dtype")
        if self.attention is not None:
            one_of(self.attention, ("eager", "sdpa", "flash_attention_2"), "model.attention")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The frozen sparse autoencoder and where it reads."""

    path: str | None = None
    """local SAELens directory; null takes the SAE that the data source brings along, unless release is given"""
    release: str | None = None
    """sae_lens release, for example gemma-scope-2b-pt-res"""
    sae_id: str | None = None
    """id within the release, for example layer_12/width_16k/average_l0_82"""
    heldout_path: str | None = None
    """a second SAE that no loss sees, for measurement; null takes the source's"""
    layer: int | None = None
    """block whose output the SAE reads (0-based); null takes it from the SAE's own metadata"""
    max_fvu: float = 0.5
    """largest fraction of variance unexplained that the hook-point check accepts, in (0, 1]"""
    check_hook: bool = True
    """whether the hook-point check may stop the run"""

    def __post_init__(self) -> None:
        check(0 < self.max_fvu <= 1, "sae.max_fvu", "in (0, 1]", self.max_fvu)
        check(self.layer is None or self.layer >= 0, "sae.layer", ">= 0", self.layer)
        check(self.release is None or self.sae_id is not None, "sae.sae_id", "given together with sae.release", self.sae_id)
        check(self.release is None or self.path is None, "sae.path", "null when sae.release is given", self.path)


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Activation banks of the frozen model and the choice of latents."""

    select: str = "separation"
    """all, separation (the best separating latents of either side) or random (as many, drawn at random)"""
    top_k: int = 16
    """latents taken from each side (known and unknown), >= 1"""
    threshold: float = 1e-6
    """a latent above this counts as firing, >= 0"""
    bank_rows: int = 2048
    """most rows of each anchor stream that enter a bank, >= 2"""

    def __post_init__(self) -> None:
        one_of(self.select, ("all", "separation", "random"), "latents.select")
        check(self.top_k >= 1, "latents.top_k", ">= 1", self.top_k)
        check(self.threshold >= 0, "latents.threshold", ">= 0", self.threshold)
        check(self.bank_rows >= 2, "latents.bank_rows", ">= 2", self.bank_rows)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

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
    """auto, ddp, ddp_find_unused_parameters_true, fsdp, ..."""
    precision: str | None = None
    """32-true, bf16-mixed, ..."""
    accumulate: int = 1
    """micro-batches in one optimiser step, >= 1"""
    progress_bar: bool = True
    """whether a progress bar is shown"""
    checkpoint_every: int = 0
    """steps between checkpoints; 0 keeps the last one only"""
    threads: int = 0
    """CPU threads for torch; 0 leaves torch's choice"""

    def __post_init__(self) -> None:
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
    collapse_perplexity: float = 1.5
    """generic perplexity above this multiple of the base model's raises the collapse flag, > 1"""
    collapse_retain: float = 0.5
    """retain accuracy at or below this share of the base model's raises the collapse flag, in [0, 1]"""

    def __post_init__(self) -> None:
        for name, low in (("every", 0), ("batch_size", 1), ("max_new_tokens", 1), ("bootstrap", 0), ("permutations", 1), ("null_draws", 0), ("samples", 0)):
            check(getattr(self, name) >= low, f"evaluation.{name}", f">= {low}", getattr(self, name))
        check(self.collapse_perplexity > 1, "evaluation.collapse_perplexity", "> 1", self.collapse_perplexity)
        check(0 <= self.collapse_retain <= 1, "evaluation.collapse_retain", "in [0, 1]", self.collapse_retain)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """whether an MLflow run is made"""
    uri: str | None = None
    """tracking store; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder"""
    experiment: str = "unlearn"
    """MLflow experiment"""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run."""

    name: str = MISSING
    """name of the run; it is kept in <out>/<name>"""
    out: str = "runs"
    """folder of the run directories"""
    seed: int = 0
    """seed of everything random"""
    cache: str | None = None
    """folder of built worlds, banks and references; null takes UNLEARN_CACHE, else ~/.cache/unlearn"""
    data: SourceConfig = field(default_factory=SourceConfig)
    """where the rows come from"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the language model"""
    sae: SAEConfig = field(default_factory=SAEConfig)
    """the frozen sparse autoencoder"""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """activation banks and latents"""
    method: MethodConfig = field(default_factory=MethodConfig)
    """what is minimised"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """optimiser and schedule"""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """devices, precision, checkpoints"""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """what is measured"""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow"""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", ">= 0", self.seed)
