"""Gradient checkpointing changes the memory and the time of a step, never its gradients: for every method with a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract.test_methods import LOSSES
from tests.toys import Toy, toy
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig

pytestmark = pytest.mark.slow
BLOCKS: dict[str, Any] = {}
LORA = {"trainable": TrainableConfig(mode="lora"), "lora": LoRAConfig(rank=2)}
CASES = [pytest.param(name, BLOCKS, id=name) for name in LOSSES]
CASES += [pytest.param(name, LORA, id=f"{name}-lora") for name in LOSSES if name != "kuda"]
"""``kuda`` projects the gradients of whole matrices and refuses adapters."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def gradients(made: Toy, name: str, **model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    lm, method = made.ready(name, model=ModelConfig(**model))
    with torch.no_grad():
        for key, weight in lm.named_parameters():
            if "lora_B" in key:  # zero at the start, where lora_A has no gradient
                weight.copy_(torch.linspace(-0.2, 0.2, weight.numel()).view_as(weight))
    method.before_step(lm, 1, 10)
    method.loss(lm, made.batch()).total.backward()
    weights = {**dict(lm.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    return {key: p.grad for key, p in weights.items() if p.grad is not None}


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_gradients_are_those_of_a_pass_without(made: Toy, name: str, mode: dict[str, Any]) -> None:
    plain = gradients(made, name, **mode)
    again = gradients(made, name, gradient_checkpointing=True, **mode)
    assert sum(float(g.abs().sum()) for g in plain.values()) > 0
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-4, atol=1e-6)
