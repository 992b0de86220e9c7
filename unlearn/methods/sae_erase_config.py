"""Settings of ``sae_erase``."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlearn.config.checks import check, one_of
from unlearn.methods.relearning import AdversaryConfig
from unlearn.methods.sae_guided import SAEGuidedConfig


@dataclass(frozen=True, kw_only=True)
class SAEEraseConfig(SAEGuidedConfig, AdversaryConfig):
    """Weights of the terms, and the adversary."""

    position: str = "both"
    """where the SAE reads: entity_end (last token of the name), answer_start (last prompt token) or both"""
    forget_weight: float = 2.0
    """weight of the SAE-space objective, >= 0"""
    output_weight: float = 5.0
    """weight of the divergence from what is said after names never met, >= 0"""
    hidden_weight: float = 1.0
    """weight of the distance to the codes of names never met, >= 0"""
    share_weight: float = 0.2
    """weight of the distance between the true values' shares and those that they have for unknown names, >= 0"""
    share_within: str = "all"
    """where shares are matched: over all rows, or within each kind (questions, statements, ...)"""
    meta_weight: float = 4.0
    """weight of what the adversary gets out, >= 0"""
    meta_every: int = 1
    """the adversary trains and is asked in one of so many steps, >= 1"""
    meta_loss: str = "match"
    """match (shares at the adversary's weights are those of unknown names there, from both sides) or cap (they are at most even)"""
    cap_margin: float = 0.7
    """how far below an even share the cap lies, in nats, finite"""
    retain_kl: float = 10.0
    """weight of KL(original || model) on the answers of the rows that are kept, >= 0"""
    retain_hidden: float = 1.0
    """weight of the relative squared change of every block's output on those rows, >= 0"""
    retain_noise: float = 1.0
    """Gaussian noise at the entity token of those rows, at a block drawn in each step, up to this multiple of its deviation, >= 0"""
    patch_share: float = 0.5
    """share of those steps in which the adversary also has the original model's codes of the targets put back at a block, in [0, 1]"""
    patch_blocks: str = "up"
    """where they are put back: up (at a block drawn in each step, in half of the steps at all from there to the last but one) or one"""
    patch_weight: float = 0.5
    """weight of the same distance at the model's own weights, with the original model's codes of the targets put back, >= 0"""
    readout_weight: float = 0.0
    """weight of what the original model's linear probes read off the targets' activations beyond what they read off unknown names, >= 0"""
    draws: int = 3
    """unknown names for each target, of which its neighbours are made, >= 1"""
    replay_weight: float = 1.0
    """weight of names that the model lists itself, beside retain_kl and retain_hidden, >= 0"""
    replay_rounds: int = 8
    """most rounds of 256 samples in which the model lists names, >= 1"""
    replay_rows: int = 16
    """rows about those names in a step, >= 1"""
    virtual_weight: float = 0.5
    """weight of virtual known entities, beside retain_kl and retain_hidden, >= 0"""
    virtual_rows: int = 8
    """virtual known entities in a step, >= 1"""
    adversary_life: list[int] = field(default_factory=lambda: [8, 50])
    """times that an adversary trains before another begins: the least and the most, >= 1"""

    def __post_init__(self) -> None:
        SAEGuidedConfig.__post_init__(self)
        AdversaryConfig.__post_init__(self)
        one_of(self.meta_loss, ("match", "cap"), "method.meta_loss")
        one_of(self.share_within, ("all", "kind"), "method.share_within")
        for name in (
            "output_weight",
            "hidden_weight",
            "share_weight",
            "meta_weight",
            "patch_weight",
            "readout_weight",
            "replay_weight",
            "virtual_weight",
        ):
            check(0 <= getattr(self, name) < float("inf"), f"method.{name}", "finite and >= 0", getattr(self, name))
        check(-float("inf") < self.cap_margin < float("inf"), "method.cap_margin", "finite", self.cap_margin)
        one_of(self.patch_blocks, ("one", "up"), "method.patch_blocks")
        check(0 <= self.patch_share <= 1, "method.patch_share", "in [0, 1]", self.patch_share)
        for name in ("draws", "meta_every", "replay_rounds", "replay_rows", "virtual_rows"):
            check(getattr(self, name) >= 1, f"method.{name}", ">= 1", getattr(self, name))
        life = self.adversary_life
        check(len(life) == 2 and 1 <= life[0] <= life[1], "method.adversary_life", "two whole numbers >= 1, the smaller first", life)
