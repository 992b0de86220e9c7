"""Everything that is measured, on a GPU and on the CPU."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, note
from tests.tiny import tiny_llama
from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import EvaluationConfig
from unlearn.evaluation.gradnorm import gradient_norms
from unlearn.evaluation.places import PlaceMeter, places
from unlearn.metrics.likelihood import Perplexity

EXACT = ("accuracy", "refusal", "share", "flag", "reason")
"""Parts of keys whose values count rows: they are the same. Others are the same to 0.002, relative to 1 or to the value."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), taught=True)


def changed(made: Toy) -> torch.nn.Module:
    """The model with its weights shaken, the same on every device."""
    noise, lm = torch.Generator().manual_seed(3), copy.deepcopy(made.lm)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_((0.02 * torch.randn(weight.shape, generator=noise)).to(weight.device))
    return lm


def measured(made: Toy, device: str) -> dict[str, float | str]:
    """Every key that there is."""
    suite = made.suite(bootstrap=20, permutations=19, null_draws=3, batch_size=8, max_new_tokens=4)
    config = EvaluationConfig(bootstrap=20, permutations=19)
    suite.places = PlaceMeter(made.meter(config).groups, places(LAYER, 4, made.sae, made.sae), config, made.datamodule.pad_id, seed=0)
    suite.places.remember(made.lm)
    suite.original, suite.gold_model = lambda: made.lm, lambda: tiny_llama(seed=99).to(device)
    suite.measure_base(made.lm)
    suite.measure_gold(suite.gold_model)
    lm = changed(made)
    return suite.final(suite.measure(lm)) | suite.deep(lm)


def test_every_result_is_that_of_the_cpu(made: Toy) -> None:
    wanted, found = measured(made, "cpu"), measured(made.on(DEVICE), DEVICE)
    assert wanted.keys() == found.keys()
    wrong = {}
    for key, value in wanted.items():
        if isinstance(value, str) or any(part in key for part in EXACT) or math.isnan(value):
            same = value == found[key] or (value != value and found[key] != found[key])
        else:
            same = abs(value - found[key]) <= 2e-3 * max(1.0, abs(value))
        if not same:
            wrong[key] = (value, found[key])
    note("evaluation", keys=len(wanted), differing=len(wrong), which=str(wrong))
    assert not wrong


def test_gradient_norms_are_those_of_the_cpu(made: Toy) -> None:
    rows = made.datamodule.streams["forget"][:4]
    np.testing.assert_allclose(gradient_norms(made.on(DEVICE).lm, rows), gradient_norms(made.lm, rows), rtol=1e-3)


def test_a_metric_stays_on_its_device() -> None:
    metric = Perplexity().to(DEVICE)
    metric.update(torch.zeros(3, 8, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE))
    assert metric.compute().device.type == DEVICE
    assert float(metric.compute()) == pytest.approx(8.0)
