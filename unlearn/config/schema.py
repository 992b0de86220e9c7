"""The skeleton of a run's configuration. A string under a field is its documentation and its ``--help-config`` line.

Defaults live here and nowhere else; a YAML file states only what differs. Plug-in sections (``data``, ``method``) are typed by
the plug-in that ``data.source`` or ``method.name`` names: their dataclasses stand beside their owners.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from unlearn.config.checks import check
from unlearn.config.model_schema import ChatConfig, LatentsConfig, LoRAConfig, ModelConfig, SAEConfig, TrainableConfig
from unlearn.config.run_schema import BatchConfig, EvaluationConfig, MethodConfig, OptimConfig, SourceConfig, TrackingConfig, TrainerConfig

__all__ = [
    "BatchConfig",
    "ChatConfig",
    "EvaluationConfig",
    "LatentsConfig",
    "LoRAConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SAEConfig",
    "SourceConfig",
    "TrackingConfig",
    "TrainableConfig",
    "TrainerConfig",
]


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
        if self.data.partition != "test" and (self.evaluation.gold == "source" or self.method.name == "gold"):
            wanted = "data.partition", "test where the source's gold model is asked for, which never saw the test's targets"
            check(False, *wanted, self.data.partition)
