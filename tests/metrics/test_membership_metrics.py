from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from tests.functional.test_membership import KEYS, lettered
from tests.functional.test_scores import of
from tests.oracles.load import oracle
from unlearn.errors import ConfigError, DataError
from unlearn.metrics import MembershipAuc, MembershipRelDiff, PrivLeak

METRICS = oracle("metrics")["metrics"]


@pytest.mark.parametrize("key", KEYS)
def test_area_equals_open_unlearning_batch_by_batch(key: str) -> None:
    attack, k = KEYS[key]
    metric = MembershipAuc(attack, k=k, compat=True).set_dtype(torch.float64)
    for rows in (slice(0, 3), slice(3, 10)):
        for name in ("forget", "holdout"):
            scores = lettered(name) if attack == "zlib" else of(name, rows)
            if attack != "zlib" or rows.start:
                metric.update(scores, holdout=name == "holdout")
    assert metric.compute().item() == pytest.approx(METRICS[key]["auc"], abs=1e-12)


def test_privleak_and_difference_are_made_of_the_same_area() -> None:
    area = METRICS["mia_min_k_0.4"]["auc"]
    leak, difference = PrivLeak(0.48, compat=True), MembershipRelDiff(0.48, compat=True)
    for name in ("forget", "holdout"):
        leak.update(of(name), holdout=name == "holdout")
        difference.update(of(name), holdout=name == "holdout")
    assert leak.compute().item() == pytest.approx(100 * ((1 - area) - 0.52) / 0.52, rel=1e-6)
    assert difference.compute().item() == pytest.approx(100 * (area - 0.48) / 0.48, rel=1e-6)


def test_one_pass_feeds_every_attack_of_a_collection() -> None:
    attacks = ("loss", "min_k", "min_k_plus_plus")
    collection = MetricCollection({a: MembershipAuc(a) for a in attacks} | {"short": MembershipAuc("min_k", k=0.1), "leak": PrivLeak(0.5)})
    for name in ("forget", "holdout"):
        collection.update(scores=of(name), holdout=name == "holdout")
    together = {key: value.item() for key, value in collection.compute().items()}
    for key, alone in {**{a: MembershipAuc(a) for a in attacks}, "short": MembershipAuc("min_k", k=0.1), "leak": PrivLeak(0.5)}.items():
        for name in ("forget", "holdout"):
            alone.update(of(name), holdout=name == "holdout")
        assert together[key] == alone.compute().item()
    assert len(set(together.values())) == len(together)


def test_reference_losses_are_passed_on() -> None:
    metric = MembershipAuc("reference")
    metric.update(of("forget"), holdout=False, reference_nll_B=of("forget").nll() + 1)
    metric.update(of("holdout"), holdout=True, reference_nll_B=of("holdout").nll() - 1)
    assert metric.compute().item() == 1.0
    with pytest.raises(DataError, match="needs reference_nll_B"):
        metric.update(of("forget"), holdout=False)


def test_gradient_norms_come_as_finished_scores() -> None:
    metric = MembershipAuc("gradnorm")
    metric.update(torch.tensor([1.0, 2.0]), holdout=False)
    assert metric.compute().isnan()
    metric.update(torch.tensor([1.5], dtype=torch.float64), holdout=True)
    assert metric.compute().item() == 0.5
    with pytest.raises(ConfigError, match="takes gradient norms"):
        metric.update(of("forget"), holdout=False)
    metric.reset()
    assert metric.compute().isnan()


def test_settings_are_checked() -> None:
    for wrong in ({"attack": "lira"}, {"k": 0.0}, {"k": float("nan")}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} must be"):
            MembershipAuc(**wrong)
    for reference_auc in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="^reference_auc must be"):
            PrivLeak(reference_auc)


def test_pickles_clones_and_merges() -> None:
    whole, left, right = MembershipAuc(), MembershipAuc(), MembershipAuc()
    for metric, name in ((left, "forget"), (right, "holdout"), (whole, "forget"), (whole, "holdout")):
        metric.update(of(name), holdout=name == "holdout")
    left.merge_state(right)
    restored: Any = pickle.loads(pickle.dumps(left.clone()))
    assert restored.compute().item() == whole.compute().item()


def test_traits() -> None:
    assert {m.key: m.higher_is_better for m in (MembershipAuc, PrivLeak, MembershipRelDiff)} == {
        "membership_auc": None,
        "privleak": None,
        "membership_rel_diff": None,
    }
