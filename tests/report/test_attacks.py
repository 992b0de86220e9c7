"""Figures and table of attacks, from records made by hand."""

import json

import numpy as np

from unlearn.report.attacks import attack_figure, attack_rows, attack_series, draw_attack, relearning_figure

OUTCOME = {
    "cells": ["lr0.1_step5", "lr0.1_step20", "lr0.2_step5", "lr0.2_step20"],
    "target": [[0, 1], [1, 1], [0, 0], [None, 1]],
    "control": [[0, 0], [0, 1], [0, 0], [0, 0]],
    "target_groups": ["a", "b"],
    "control_groups": ["c", "d"],
    "extra": {},
}


def keep(path, **more):
    (path / "attacks").mkdir()
    (path / "attacks" / "relearn.json").write_text(json.dumps({"outcome": OUTCOME, **more}))


def lines_of(figure):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()}


def test_curves_take_the_best_setting_at_each_number_of_steps(tmp_path):
    keep(tmp_path, gold=OUTCOME)
    cells, series = attack_series(tmp_path, "relearn")
    assert set(series) == {"target", "control", "gold", "gold control"}
    lines = lines_of(attack_figure("relearn", cells, series))
    assert lines["this model, target"] == ([5, 20], [0.5, 1.0])
    assert lines["this model, unknown names"] == ([5, 20], [0.0, 0.5])
    assert {p.name for p in draw_attack(tmp_path, "relearn")} == {"attack_relearn.png", "attack_relearn.svg"}


def test_other_settings_are_dots_the_best_first_where_there_are_many():
    cells = [f"cell {chr(97 + i)}" for i in range(20)]
    figure = attack_figure("steer", cells, {"target": np.arange(20) / 20, "control": np.zeros(20)})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "cell t"
    assert len(labels) == 18


def test_an_attack_that_was_not_made_has_no_figure(tmp_path):
    assert attack_series(tmp_path, "relearn") == ([], {})
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "strip.json").write_text(json.dumps({"skipped": "a method that acts at inference"}))
    assert draw_attack(tmp_path, "strip") == []


def test_rows_are_sorted_by_what_goes_beyond_and_marked():
    results = {
        "attack/steer_accuracy": 0.2, "attack/steer_control": 0.2, "attack/steer_excess": 0.0,
        "attack/relearn_recovery": 0.9, "attack/relearn_control": 0.1, "attack/relearn_excess": 0.8,
        "attack/relearn_excess/ci_low": 0.6, "attack/relearn_excess/ci_high": 0.9, "attack/relearn_gold": 0.1,
    }  # fmt: skip
    assert attack_rows(results) == [
        ("relearn", "0.90", "0.10", "+0.80 (+0.60 to +0.90)", "0.10", "gets facts out"),
        ("steer", "0.20", "0.20", "+0.00", "–", ""),
    ]


def test_the_study_figure_has_one_point_for_each_setting_and_the_gold_line():
    def entry(mean):
        return {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}

    summary = {
        name: {f"attack/relearn_{k}": entry(v) for k, v in (("recovery", value), ("control", 0.1), ("excess", value - 0.1), ("gold", 0.2))}
        for name, value in (("b", 0.9), ("a", 0.3))
    }
    figure = relearning_figure(summary, {"a": "erased", "b": "hidden"})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert {"erased", "hidden", "control", "gold model"} <= set(lines_of(figure))
