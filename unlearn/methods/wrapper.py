"""Methods that run another method: ``method.inner`` names it and holds its settings."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unlearn.config.schema import MethodConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.methods.base import Method, MethodContext
from unlearn.methods.grad_diff import GradDiffConfig
from unlearn.registry import find
from unlearn.types import STREAMS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class WrapperConfig(MethodConfig):
    """The method inside."""

    inner: MethodConfig = field(default_factory=lambda: GradDiffConfig(name="grad_diff"))
    """the method that is run inside: its name and its settings"""


def inner_config(config: MethodConfig) -> MethodConfig:
    """Settings of the method inside.

    Raises:
        TypeError: ``config`` is not that of a wrapper.
    """
    if not isinstance(config, WrapperConfig):
        raise TypeError(f"a wrapper needs a WrapperConfig; got {type(config).__name__}")
    return config.inner


def inner_class(config: MethodConfig) -> type[Method]:
    """Class of ``config.inner``.

    Raises:
        ConfigError: it is a wrapper itself, or has no loss to run.
    """
    inner = inner_config(config)
    found: type[Method] = find("method", inner.name, "method.inner.name").load()
    if found.wraps or not found.trains or not found.streams_of(inner):
        raise ConfigError(f"method.inner.name must be a method with a loss that is no wrapper itself; found {inner.name!r}.")
    return found


class Wrapper(Method, ABC):
    """Builds the inner method and passes on what it declares; a subclass changes what it has to."""

    wraps = True
    Config = WrapperConfig
    config: WrapperConfig

    def __init__(self, config: WrapperConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        cls = inner_class(config)
        self.inner = cls(config.inner, context.only(cls.required(config.inner)))

    @classmethod
    def required(cls, config: MethodConfig) -> frozenset[str]:
        """What the inner method needs, and what the wrapper itself does."""
        return cls.needs | inner_class(config).required(inner_config(config))

    @classmethod
    def takes_routed(cls, config: MethodConfig) -> bool:
        """Whether the inner method does, and the wrapper itself."""
        own = cls.routed or not cls.needs & {"sae", "banks"}
        return own and inner_class(config).takes_routed(inner_config(config))

    @classmethod
    def takes_sharded(cls, config: MethodConfig) -> bool:
        """Whether the inner method does, and the wrapper itself."""
        return cls.sharded and inner_class(config).takes_sharded(inner_config(config))

    @classmethod
    def streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Streams of the inner method and of the wrapper, in the order of ``STREAMS``."""
        return cls.with_inner_streams(config, cls.streams)

    @classmethod
    def with_inner_streams(cls, config: MethodConfig, own: Sequence[str]) -> tuple[str, ...]:
        """Streams of the inner method and ``own``, in the order of ``STREAMS``; for wrappers whose own streams are a setting."""
        used = {*inner_class(config).streams_of(inner_config(config)), *own}
        return tuple(stream for stream in STREAMS if stream in used)

    @classmethod
    def reference_streams_of(cls, config: MethodConfig) -> tuple[str, ...]:
        """Those of the inner method and of the wrapper."""
        inner = inner_class(config).reference_streams_of(inner_config(config))
        return tuple(dict.fromkeys((*inner, *cls.reference_streams)))

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """Those of the inner method."""
        return inner_class(config).reference_layers(inner_config(config), hook_layer, n_blocks)

    def trainable(self, n_blocks: int) -> TrainableConfig | None:
        """What the inner method trains."""
        return self.inner.trainable(n_blocks)

    def forget_layer(self) -> int | None:
        """As the inner method."""
        return self.inner.forget_layer()

    def deepest_layer(self) -> int | None:
        """As the inner method."""
        return self.inner.deepest_layer()

    def leaves_idle(self) -> bool:
        """As the inner method."""
        return self.inner.leaves_idle()

    def setup(self, lm: PreTrainedModel) -> None:
        """Set up the inner method."""
        self.inner.setup(lm)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Tell the inner method."""
        self.inner.before_step(lm, step, steps)

    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Let the inner method change the gradients."""
        self.inner.adjust_gradients(lm)

    def finish(self, lm: PreTrainedModel) -> None:
        """Let the inner method finish."""
        self.inner.finish(lm)

    def install(self, lm: PreTrainedModel) -> None:
        """Install what the inner method installs."""
        self.inner.install(lm)
