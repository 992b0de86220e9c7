"""Forget rows beside rows never seen, and beside the gold model."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, mannwhitneyu

from tests.toys import PEOPLE, Toy, rows, toy
from unlearn.evaluation.answers import measure_answers
from unlearn.evaluation.privacy import against_gold, comparable, membership


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def kept(made: Toy) -> dict[str, list[float]]:
    records = measure_answers(made.lm, made.data.evaluation["forget"], made.reader())
    return comparable(made.lm, records, rows("retain_unseen", 900), made.reader())


def test_membership_areas_are_rank_statistics(kept: dict[str, list[float]]) -> None:
    found = membership(kept)
    assert set(found) == {"forget/mia_loss", "forget/mia_zlib", "forget/mia_min_k", "forget/mia_min_k_plus_plus", "forget/privleak"}
    for name in ("loss", "min_k", "min_k_plus_plus"):
        a, b = kept[f"forget_{name}"], kept[f"holdout_{name}"]
        statistic = mannwhitneyu(b, a).statistic / (len(a) * len(b))
        assert found[f"forget/mia_{name}"] == pytest.approx(statistic, abs=1e-9)
    area = found["forget/mia_min_k"]
    assert found["forget/privleak"] == pytest.approx(100 * ((1 - area) - 0.5) / 0.5)


def test_without_holdout_rows_there_is_no_attack(made: Toy) -> None:
    records = measure_answers(made.lm, made.data.evaluation["forget"], made.reader())
    assert membership(comparable(made.lm, records, (), made.reader())) == {}


def test_a_model_is_of_perfect_quality_against_itself_and_of_poor_quality_against_another(made: Toy, kept: dict[str, list[float]]) -> None:
    same = against_gold(kept, kept)
    assert same["forget/quality"] == 1.0
    assert same["forget/quality_ks"] == 0.0
    assert same["forget/privleak_gold"] == 0.0
    assert same["forget/mia_reference"] == 0.5
    shifted = {**kept, "truth_ratio": [v * 100 for v in kept["truth_ratio"]]}
    other = against_gold(kept, shifted)
    expected = ks_2samp(kept["truth_ratio"], shifted["truth_ratio"])
    assert other["forget/quality"] == pytest.approx(expected.pvalue)
    assert other["forget/quality_ks"] == pytest.approx(expected.statistic)


def test_the_suite_reports_quality_against_the_gold_model(made: Toy, tmp_path) -> None:  # noqa: ANN001
    gold = copy.deepcopy(made.lm)
    with torch.no_grad():
        gold.lm_head.weight.add_(torch.randn(gold.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    suite = made.suite()
    suite.data = replace(suite.data, holdout=rows("unknown_heldout", 950))
    base = suite.measure_base(made.lm)
    assert "forget/quality" not in suite.final(base)
    suite.measure_gold(lambda: gold, tmp_path / "gold.json")
    suite.measure_gold(lambda: pytest.fail("measured twice"), tmp_path / "gold.json")
    final = suite.final(base)
    assert 0 <= final["forget/quality"] < 1
    assert suite.final(suite.measure(gold))["forget/quality"] == 1.0
    assert np.isfinite(final["forget/mia_reference"])
    assert len(PEOPLE["forget"]) * 3 == len(suite.gold.rows["truth_ratio"])
