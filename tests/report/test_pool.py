"""Several seeds as one row, against numpy; the front, against every pair of settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from unlearn.report.columns import COLUMNS, columns_of, lines_of
from unlearn.report.headline import headline
from unlearn.report.objectives import MOST_NAMED, front, looks, sides, standing
from unlearn.report.pool import pool
from unlearn.report.style import PALETTE
from unlearn.report.words import verdicts
from unlearn.tracking.reader import RunRecord


def run(name, method, seed, results, metrics=(), state="finished"):
    return RunRecord(
        name=name,
        path=Path(),
        config={"name": name, "seed": seed, "method": {"name": method}},
        results=results,
        metrics=list(metrics),
        status={"state": state},
    )


def seeds(values, key="forget/accuracy", method="npo"):
    return [run(f"s/{method}/seed{i}", method, i, {key: value, f"{key}/ci_low": -9.0}) for i, value in enumerate(values)]


def test_seeds_are_pooled_to_mean_and_interval():
    values = [0.1, 0.4, 0.2, 0.35, 0.15]
    [setting] = pool(seeds(values))
    assert setting.number("forget/accuracy") == pytest.approx(np.mean(values))
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    assert setting.interval("forget/accuracy") == pytest.approx((expected.low, expected.high), abs=0.02)
    assert setting.seeds == ("0", "1", "2", "3", "4")
    assert setting.name == "s/npo"
    assert len(setting.runs) == 5


def test_one_run_stays_as_it_is():
    record = run("s/npo", "npo", 3, {"forget/accuracy": 0.5, "forget/accuracy/ci_low": 0.4, "forget/accuracy/ci_high": 0.7})
    [setting] = pool([record])
    assert setting.results is record.results
    assert setting.name == "s/npo"
    assert setting.interval("forget/accuracy") == (0.4, 0.7)
    assert setting.interval("retain/accuracy") is None


def test_odd_values_are_pooled_as_far_as_they_go():
    infinite, *_ = pool(seeds([1.0, float("inf")], "generic/perplexity"))
    assert infinite.number("generic/perplexity") == float("inf")
    missing, *_ = pool([run("s/a/seed0", "a", 0, {"x": 1.0}), run("s/a/seed1", "a", 1, {"x": float("nan"), "y": 2.0, "why": "t"})])
    assert (missing.number("x"), missing.number("y"), missing.results["why"]) == (1.0, 2.0, "t")
    assert missing.interval("x") is None


def test_curves_are_means_where_all_seeds_measured():
    def rows(steps, values):
        return [{"step": s, "stage": "train", "key": "k", "value": v} for s, v in zip(steps, values, strict=True)]

    first = run("s/a/seed0", "a", 0, {}, rows([0, 10, 20], [1.0, 2.0, 9.0]))
    second = run("s/a/seed1", "a", 1, {}, rows([0, 10], [1.0, 4.0]))
    third = run("s/a/seed2", "a", 2, {})  # measured nothing
    steps, mean, low, high = pool([first, second, third])[0].curve("k")
    assert steps == [0, 10]
    assert mean == [1.0, 3.0]
    assert (low[0], high[0]) == (1.0, 1.0)
    assert low[1] == pytest.approx(2.0)
    assert high[1] == pytest.approx(4.0)


def test_the_state_that_matters_is_told():
    records = [run("s/a/seed0", "a", 0, {}), run("s/a/seed1", "a", 1, {}, state="failed")]
    assert pool(records)[0].status["state"] == "failed"
    assert verdicts(pool(records))[0].sentence.startswith("Failed")


def test_a_table_counts_collapsed_seeds_and_says_how_many_there_are():
    records = [run(f"s/a/seed{i}", "a", i, {"collapse/flag": i == 1, "collapse/reason": "why" if i == 1 else ""}) for i in range(3)]
    [line] = lines_of(pool(records))
    assert line.seeds == 3
    [index] = [i for i, column in enumerate(COLUMNS) if column.heading == "collapsed"]
    assert line.cells[index].full == "1 of 3 (why)"


def test_relearning_has_a_column_where_it_was_tried():
    assert columns_of(seeds([0.1])) == COLUMNS
    tried = [run("a", "a", 0, {"attack/relearn_excess": 0.25, "attack/relearn_excess/ci_low": -0.1, "attack/relearn_excess/ci_high": 0.5})]
    [line] = lines_of(tried, columns_of(tried))
    assert len(line.cells) == len(COLUMNS) + 1
    assert (line.cells[-2].text, line.cells[-2].interval) == ("+0.25", "-0.10 to +0.50")


KEYS = ("forget/accuracy", "retain/accuracy_unseen", "latent/c2st_auc", "attack/relearn_excess", "cost/train_cpu_seconds")
HAD = {"retain/accuracy_unseen_base": 1.0}


def settings_of(rows):
    return pool([run(f"s/m{i}", f"m{i}", 0, {**HAD, **dict(zip(KEYS, row, strict=True))}) for i, row in enumerate(rows)])


def test_the_front_is_who_is_beaten_by_nobody():
    rng = np.random.default_rng(1)
    rows = np.round(rng.uniform(0, 1, (40, 5)), 1)
    costs = rows * [1, -1, 1, 1, 1]
    costs[:, 2], costs[:, 3] = np.maximum(0.5, costs[:, 2]), np.maximum(0.0, costs[:, 3])  # less than chance is chance
    beaten = [any((a <= b).all() and (a < b).any() for a in costs) for b in costs]
    found = front(settings_of(rows))
    assert found == [not one for one in beaten]
    assert 1 < sum(found) < 40


def test_references_are_on_no_front_and_what_is_not_measured_counts_as_worst():
    records = [
        run("s/none", "none", 0, dict(zip(KEYS, (0.0, 1.0, 0.5, 0.0, 0.0), strict=True))),
        run("s/a", "a", 0, dict(zip(KEYS, (0.5, 0.5, 0.9, 0.5, 9.0), strict=True))),
        run("s/b", "b", 0, dict(zip(KEYS[:3], (0.6, 0.4, 0.9), strict=True)) | {"cost/train_cpu_seconds": 9.0}),
    ]
    assert front(pool(records)) == [False, True, False]
    assert front(pool([run("s/a", "a", 0, {"forget/accuracy": 0.0})])) == [False]


def test_axes_are_means_over_seeds_with_intervals():
    [found] = sides(pool(seeds([0.1, 0.2, 0.6])))
    assert found["forgetting"].mean == pytest.approx(0.7)
    assert (found["forgetting"].low, found["forgetting"].high) == pytest.approx((0.4, 0.9))
    assert np.isnan(found["robustness"].mean)


def test_of_many_settings_the_most_successful_have_colours():
    rows = [(0.9, 1.0, 1.0, 0.5, 1.0)] * 20 + [(0.0, 1.0, 0.5, 0.0, 1.0)]
    settings = settings_of(rows)
    assert standing(settings)[0] == 20
    drawn = looks(settings)
    assert drawn[20].named
    assert sum(look.named for look in drawn) < MOST_NAMED
    assert {look.color for look in drawn if not look.named} == {PALETTE["band"]}
    few = looks(settings[-5:])
    assert all(look.named for look in few)
    assert len({look.color for look in few}) == 5


def test_the_headline_counts_settings():
    text = headline(verdicts(pool(seeds([0.0, 0.0]))), "setting")
    assert text.startswith("Of one trained setting, one stopped answering. No attack was made")


def test_a_setting_is_told_from_another_by_its_keys_not_its_seed():
    records = [*seeds([0.1, 0.2]), *seeds([0.3, 0.4], method="rmu")]
    assert [(s.name, len(s.runs)) for s in pool(records)] == [("s/npo", 2), ("s/rmu", 2)]
    assert json.dumps([s.seeds for s in pool(records)]) == '[["0", "1"], ["0", "1"]]'


def test_one_seed_under_several_names_is_no_pool():
    records = [run("s/a", "npo", 0, {"forget/accuracy": 0.1}), run("s/b", "npo", 0, {"forget/accuracy": 0.2})]
    assert [(s.name, s.number("forget/accuracy")) for s in pool(records)] == [("s/a", 0.1), ("s/b", 0.2)]
