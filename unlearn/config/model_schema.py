"""Sections about the models: language model, SAE, latents."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlearn.config.checks import check, one_of


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
class ChatConfig:
    """How a question is put to an instruction-tuned model: in the turns of its tokenizer's chat template."""

    template: str = "auto"
    """auto (the chat template where the tokenizer has one, else data.question_format), always or never"""
    system: str | None = None
    """system prompt; null for none"""
    user: str = "{question}"
    """text of the user's turn; must contain {question}"""

    def __post_init__(self) -> None:
        one_of(self.template, ("auto", "always", "never"), "model.chat.template")
        check("{question}" in self.user, "model.chat.user", "a text that contains {question}", self.user)


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
    quantise: str | None = None
    """8bit or nf4: the frozen weights in 8 or 4 bits through bitsandbytes, for trainable.mode lora; null for none"""
    gradient_checkpointing: bool = False
    """whether activations of a block are computed again in the backward pass, which saves memory and costs time"""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """chat template of an instruction-tuned model"""
    trust_remote_code: bool = False
    """whether code from the hub may run; off unless you ask"""
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    """which weights are trained"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """adapters, used with trainable.mode lora"""

    def __post_init__(self) -> None:
        one_of(self.dtype, ("float32", "bfloat16", "float16"), "model.dtype")
        if self.quantise is not None:
            one_of(self.quantise, ("8bit", "nf4"), "model.quantise")
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
    route: str | None = None
    """local directory of a RouteSAE (one SAE that reads several blocks), in the place of path or release"""
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
        for name in ("path", "release", "layer"):
            check(self.route is None or getattr(self, name) is None, f"sae.{name}", "null when sae.route is given", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Activation banks of the frozen model and the choice of latents."""

    select: str = "separation"
    """all, separation (the best separating latents of either side) or random (as many, drawn at random)"""
    top_k: int = 16
    """latents taken from each side (known and unknown), >= 1"""
    threshold: float = 1e-6
    """a latent above this counts as firing, >= 0"""
    matched: int = 1
    """unknown names put in the place of each target's in its own rows: the sample that objective distribution matches, >= 1"""
    bank_rows: int = 2048
    """most rows of each anchor stream that enter a bank, >= 2"""

    def __post_init__(self) -> None:
        one_of(self.select, ("all", "separation", "random"), "latents.select")
        check(self.top_k >= 1, "latents.top_k", ">= 1", self.top_k)
        check(self.threshold >= 0, "latents.threshold", ">= 0", self.threshold)
        check(self.matched >= 1, "latents.matched", ">= 1", self.matched)
        check(self.bank_rows >= 2, "latents.bank_rows", ">= 2", self.bank_rows)
