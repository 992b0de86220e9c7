from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import MethodConfig
from unlearn.errors import ConfigError
from unlearn.methods.gradient_ascent import GradientAscent
from unlearn.methods.lat import LATConfig
from unlearn.methods.sae_guided import SAEGuided, SAEGuidedConfig
from unlearn.methods.undo import UndoConfig
from unlearn.methods.wrapper import Wrapper, WrapperConfig, inner_class, inner_config
from unlearn.types import LossTerms, TokenBatch


@dataclass(frozen=True, kw_only=True)
class PlainConfig(WrapperConfig):
    """Nothing of its own."""


class Plain(Wrapper):
    """Passes everything on."""

    streams = ("unknown",)
    Config = PlainConfig

    def loss(self, lm: Any, batch: Mapping[str, TokenBatch]) -> LossTerms:
        return self.inner.loss(lm, batch)


def wrap(made: Toy, inner: MethodConfig) -> Plain:
    config = PlainConfig(name="plain", inner=inner)
    return Plain(config, made.context().only(Plain.required(config)))


def config_of(name: str, **settings: Any) -> PlainConfig:
    return PlainConfig(
        name="plain", inner=inner_class(PlainConfig(name="plain", inner=MethodConfig(name=name))).Config(name=name, **settings)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_what_the_inner_method_asks_for_is_asked_for() -> None:
    guided, ascent = config_of("sae_guided"), config_of("gradient_ascent")
    assert Plain.required(guided) == SAEGuided.needs
    assert Plain.required(ascent) == frozenset()
    assert Plain.streams_of(ascent) == ("forget", "unknown")
    assert Plain.streams_of(guided) == ("forget", "retain", "known", "unknown")
    assert Plain.reference_streams_of(guided) == ("retain", "known", "unknown")
    assert Plain.reference_streams_of(ascent) == ()
    assert Plain.reference_layers(guided, 3, 8) == (3,)


def test_the_inner_method_sees_only_what_it_declares(made: Toy) -> None:
    config = config_of("gradient_ascent")
    context = Plain(config, made.context()).inner.context
    assert context.sae is context.banks is context.reference is context.data is context.reader is None
    guided = wrap(made, SAEGuidedConfig(name="sae_guided")).inner.context
    assert guided.sae is made.sae
    assert guided.reader is None


def test_layers_and_losses_are_those_of_the_inner_method(made: Toy) -> None:
    method = wrap(made, SAEGuidedConfig(name="sae_guided", retain_kl=0.0, retain_hidden=0.0))
    assert isinstance(method.inner, SAEGuided)
    assert method.forget_layer() == method.deepest_layer() == LAYER
    assert method.trainable(4) is None
    alone = made.method("sae_guided", retain_kl=0.0, retain_hidden=0.0)
    assert torch.equal(method.loss(made.lm, made.batch()).total, alone.loss(made.lm, made.batch()).total)


def test_every_call_reaches_the_inner_method(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    for name in ("setup", "before_step", "adjust_gradients", "finish", "install"):
        monkeypatch.setattr(GradientAscent, name, lambda self, lm, *rest, name=name: calls.append((name, *rest)))
    method = Plain(config_of("gradient_ascent"), made.context())
    method.setup(made.lm)
    method.before_step(made.lm, 2, 7)
    method.adjust_gradients(made.lm)
    method.finish(made.lm)
    method.install(made.lm)
    assert calls == [("setup",), ("before_step", 2, 7), ("adjust_gradients",), ("finish",), ("install",)]


def test_the_inner_method_s_state_is_kept_in_checkpoints(made: Toy, tmp_path: Path) -> None:
    first, second = (wrap(made, SAEGuidedConfig(name="sae_guided")) for _ in range(2))
    first.loss(made.lm, made.batch())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=False)
    assert first.loss(made.lm, made.batch()).total.item() == second.loss(made.lm, made.batch()).total.item()


@pytest.mark.parametrize("inner", [MethodConfig(name="none"), LATConfig(name="lat"), UndoConfig(name="undo")])
def test_a_wrapper_or_a_method_without_a_loss_is_refused_inside(inner: MethodConfig) -> None:
    with pytest.raises(ConfigError, match=rf"method\.inner\.name must be a method with a loss .* found '{inner.name}'"):
        inner_class(PlainConfig(name="plain", inner=inner))


def test_an_unknown_inner_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"method\.inner\.name must name a known method .*grad_diff"):
        inner_class(PlainConfig(name="plain", inner=MethodConfig(name="grad_dif")))


def test_the_configuration_must_be_a_wrapper_s() -> None:
    with pytest.raises(TypeError, match="WrapperConfig"):
        inner_config(MethodConfig(name="grad_diff"))


def test_the_default_inside_is_grad_diff() -> None:
    assert inner_config(PlainConfig(name="plain")).name == "grad_diff"
