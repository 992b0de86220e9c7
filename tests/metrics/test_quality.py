from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import hmean, kstest
from torchmetrics import MetricCollection

from tests.oracles.load import column, oracle
from unlearn.errors import ConfigError, DataError
from unlearn.metrics import ForgetQuality, ForgetQualityStatistic, ModelUtility

METRICS = oracle("metrics")["metrics"]


def ratios() -> torch.Tensor:
    return column(METRICS["truth_ratio_closer_to_1_better"]["value_by_index"], "score")


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference between the two distribution functions."""
    return max(abs((a <= x).mean() - (b <= x).mean()) for x in np.concatenate([a, b]))


def test_forget_quality_equals_open_unlearning_in_two_batches() -> None:
    reference = METRICS["ks_test"]["retain_scores"]
    for dtype in (torch.float32, torch.float64):
        quality, statistic = (make(reference).set_dtype(dtype) for make in (ForgetQuality, ForgetQualityStatistic))
        for metric in (quality, statistic):
            metric.update(ratios()[:3])
            metric.update(ratios()[3:])
        assert quality.compute().item() == pytest.approx(METRICS["ks_test"]["agg_value"], abs=1e-6)
        assert statistic.compute().item() == pytest.approx(gap(ratios().numpy(), np.array(reference)), abs=1e-6)
        assert statistic.compute().item() == pytest.approx(kstest(ratios().numpy(), reference).statistic, abs=1e-6)


def test_a_model_like_the_retain_model_has_quality_one() -> None:
    for reference in (ratios(), ratios().tolist(), ratios().flip(0)):
        collection = MetricCollection([ForgetQuality(reference), ForgetQualityStatistic(reference)])
        collection.update(ratios())
        assert {k: v.item() for k, v in collection.compute().items()} == {"ForgetQuality": 1.0, "ForgetQualityStatistic": 0.0}


def test_the_inverse_ratio_gives_the_same_quality() -> None:
    """The original TOFU code stores one over the ratio; the test only looks at ranks."""
    reference = torch.tensor(METRICS["ks_test"]["retain_scores"])
    values = []
    for a, b in ((ratios(), reference), (1 / ratios(), 1 / reference)):
        metric = ForgetQuality(b)
        metric.update(a)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_overflow_keeps_its_rank_and_nan_is_left_out() -> None:
    metric = ForgetQualityStatistic([1.0, 2.0, torch.nan])
    metric.update(torch.tensor([torch.inf, torch.nan, 1.5, 1.5]))
    assert metric.compute().item() == pytest.approx(0.5)
    assert gap(np.array([np.inf, 1.5, 1.5]), np.array([1.0, 2.0])) == pytest.approx(0.5)
    metric.reset()
    assert metric.compute().isnan()
    for nothing in ([], [torch.nan]):
        with pytest.raises(ConfigError, match="reference must hold the truth ratios"):
            ForgetQuality(nothing)


def test_model_utility_equals_open_unlearning_and_scipy() -> None:
    values = METRICS["hm_aggregate"]["values"]
    metric = ModelUtility()
    for part, value in zip(metric.parts, values, strict=True):
        metric.update(part, torch.tensor([value, value]))
    assert metric.compute().item() == pytest.approx(METRICS["hm_aggregate"]["agg_value"], abs=1e-6)
    assert metric.compute().item() == pytest.approx(hmean(values), abs=1e-6)


def test_parts_are_means_over_rows_whatever_their_number() -> None:
    metric = ModelUtility(["a", "b"])
    metric.update("a", torch.tensor([0.2, 0.4, torch.nan]))
    assert metric.compute().isnan()
    metric.update("b", torch.tensor([0.5]))
    metric.update("a", torch.tensor([0.9]))
    assert metric.compute().item() == pytest.approx(0.5)
    metric.update("b", torch.tensor([-0.5]))
    assert metric.compute().item() == 0.0
    with pytest.raises(DataError, match="part must be one of a, b; found 'c'"):
        metric.update("c", torch.ones(1))
    for parts in ([], ["a", "a"], "ab"):
        with pytest.raises(ConfigError, match="parts must be a list of different names"):
            ModelUtility(parts)


def test_traits() -> None:
    assert {m.key: m.higher_is_better for m in (ForgetQuality, ForgetQualityStatistic, ModelUtility)} == {
        "forget_quality": True,
        "forget_quality_ks": False,
        "model_utility": True,
    }
