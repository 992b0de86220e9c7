"""Figures and a table of attacks, from what they left in a run's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearn.functional.contrast import cell_means
from unlearn.functional.judgement import attack_excesses, leaks
from unlearn.report.names import DASH, plain
from unlearn.report.style import PALETTE, house_style, save
from unlearn.tracking.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

MOST = 18
"""Most settings that a figure of dots shows, the best ones of the target."""
ROLES: Mapping[str, tuple[str, str, str]] = {
    "target": ("this model, target", "run-1", "-"),
    "control": ("this model, unknown names", "muted", "--"),
    "gold": ("gold model, target", "run-2", "-"),
    "gold control": ("gold model, unknown names", "run-2", ":"),
}
"""Series -> (words, role of the colour, dashes)."""
_CURVE = re.compile(r"(?:.*_)?(?:step|k)(\d+)$")


def attack_series(path: Path, name: str) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """Cells of an attack and the mean of each side in them: ``target``, ``control`` and, where there is a gold model, its two.

    Both are empty where the attack was not made.
    """
    record = read_json(path / "attacks" / f"{name}.json")
    if "outcome" not in record:
        return [], {}
    cells = [str(cell) for cell in record["outcome"]["cells"]]
    series = {side: cell_means(np.array(record["outcome"][side], dtype=float)) for side in ("target", "control")}
    if record.get("gold") and list(record["gold"]["cells"]) == cells:
        series |= {
            key: cell_means(np.array(record["gold"][side], dtype=float)) for key, side in (("gold", "target"), ("gold control", "control"))
        }
    return cells, series


def draw_attack(path: Path, name: str) -> list[Path]:
    """Write ``plots/attack_<name>.png`` and ``.svg`` below ``path``; nothing where the attack was not made."""
    cells, series = attack_series(path, name)
    if not cells:
        return []
    with house_style():
        return list(save(attack_figure(name, cells, series), path / "plots", f"attack_{name}"))


def attack_figure(name: str, cells: Sequence[str], series: Mapping[str, np.ndarray[Any, Any]]) -> Figure:
    """Right answers in every setting: a curve over steps or draws where the settings are such, dots otherwise."""
    places = curve_places(cells)
    if len(set(places)) > 1:
        return _curves(name, places, series)
    return _dots(name, cells, series)


def curve_places(cells: Sequence[str]) -> list[int]:
    """Steps or draws that each setting of an attack stands for; empty where the settings are something else."""
    places = [_CURVE.fullmatch(cell) for cell in cells]
    return [int(match[1]) for match in places if match] if all(places) else []


def best_at(xs: Sequence[int], places: Sequence[int], values: Sequence[float] | np.ndarray[Any, Any]) -> list[float]:
    """Highest of ``values`` at each number of steps or draws in ``xs``; nan where there is none."""
    return [max((float(v) for p, v in zip(places, values, strict=True) if p == x and v == v), default=float("nan")) for x in xs]


def _curves(name: str, places: Sequence[int], series: Mapping[str, np.ndarray[Any, Any]]) -> Figure:
    """Best setting at each number of steps or draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 3.5))
    ax = figure.add_axes((0.13, 0.16, 0.83, 0.6))
    xs = sorted(set(places))
    for side, values in series.items():
        words, role, dashes = ROLES[side]
        ax.plot(
            xs,
            best_at(xs, places, values),
            dashes,
            color=PALETTE[role],
            label=words,
            marker="o",
            markersize=4,
            linewidth=1.6,
            clip_on=False,
        )
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="draws for each question" if name == "sample" else "steps of training")
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.minorticks_off()
    ax.set_ylabel("questions answered right")
    _finish(figure, ax, name)
    return figure


def _dots(name: str, cells: Sequence[str], series: Mapping[str, np.ndarray[Any, Any]]) -> Figure:
    """One line for each setting, the best for the target first where there are many."""
    from matplotlib.figure import Figure

    order = list(range(len(cells)))
    if len(order) > MOST:
        order = sorted(order, key=lambda i: -np.nan_to_num(series["target"][i]))[:MOST]
    height = 1.45 + 0.22 * len(order)
    figure = Figure(figsize=(4.9, height))
    left = 0.06 + 0.0165 * max(len(cells[i]) for i in order)
    ax = figure.add_axes((left, 0.5 / height, 0.97 - left, (height - 1.3) / height))
    for side, values in series.items():
        words, role, _ = ROLES[side]
        marker = "o" if side in ("target", "gold") else "|"
        fill = PALETTE[role] if side == "target" or marker == "|" else "none"
        ax.plot([values[i] for i in order], range(len(order)), marker, color=PALETTE[role], markerfacecolor=fill, label=words, markersize=6)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(order) - 0.5, -0.5), xlabel="questions answered right")
    ax.set_yticks(range(len(order)), [cells[i] for i in order])
    ax.grid(axis="y", visible=False)
    _finish(figure, ax, name)
    return figure


def _finish(figure: Figure, ax: Axes, name: str) -> None:
    height = figure.get_size_inches()[1]
    figure.text(0.02, 1 - 0.1 / height, f"Attack: {name}", fontweight="bold", fontsize=10.5, va="top")
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.28 / height), ncols=2, frameon=False, fontsize=8)


WORD_ROLES: Mapping[str, str] = {"erased": "run-2", "hidden": "run-1", "damaged": "run-3", "not forgotten": "run-5"}
"""Verdict -> role of its colour."""


def relearning_figure(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]], words: Mapping[str, str], key: str = "attack/relearn", width: float = 6.4
) -> Figure:
    """What relearning brings back, one line for each setting: recovery with its interval over seeds, control, and the gold model.

    Args:
        summary: ``{setting: {key: {mean, ci_low, ci_high}}}``.
        words: verdict on each setting.
        key: the attack.
        width: inches of the figure.
    """
    from matplotlib.figure import Figure

    rows = [(label, found) for label, found in summary.items() if f"{key}_recovery" in found]
    rows.sort(key=lambda row: row[1][f"{key}_excess"]["mean"])
    height = 1.5 + 0.2 * len(rows)
    with house_style():
        figure = Figure(figsize=(width, height))
        left = (0.25 + 0.08 * max((len(label) for label, _ in rows), default=1)) / width
        ax = figure.add_axes((left, 0.5 / height, 0.97 - left, (height - 1.35) / height))
        _recovered(ax, rows, words, key)
        figure.text(0.02, 1 - 0.1 / height, "Facts that come back after relearning others", fontweight="bold", fontsize=10.5, va="top")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.28 / height), ncols=3, frameon=False, fontsize=8)
    return figure


def _recovered(ax: Axes, rows: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], words: Mapping[str, str], key: str) -> None:
    seen: set[str] = set()
    for place, (label, found) in enumerate(rows):
        word = words.get(label, "")
        colour, entry = PALETTE[WORD_ROLES.get(word, "muted")], found[f"{key}_recovery"]
        ax.plot([entry["ci_low"], entry["ci_high"]], [place, place], color=colour, linewidth=1.2)
        ax.plot(entry["mean"], place, "o", color=colour, markersize=5, label=word if word not in seen else None)
        control = found[f"{key}_control"]["mean"]
        ax.plot(control, place, "|", color=PALETTE["muted"], markersize=8, label="control" if not seen else None)
        seen.add(word)
    gold = [found[f"{key}_gold"]["mean"] for _, found in rows if f"{key}_gold" in found]
    if gold:
        ax.axvline(float(np.mean(gold)), color=PALETTE["band"], linewidth=0.9, label="gold model")
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.7, len(rows) - 0.3), xlabel="questions answered right at the best setting")
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.grid(axis="y", visible=False)


def attack_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line for each attack, most telling first: name, target, control, excess with interval, gold model."""
    lines: list[tuple[str, ...]] = []
    out = leaks(results)
    for name, _ in sorted(attack_excesses(results).items(), key=lambda item: -item[1][0]):
        key = f"attack/{name}"
        target = next((results[f"{key}_{m}"] for m in ("accuracy", "recovery") if f"{key}_{m}" in results), float("nan"))
        ends = [results.get(f"{key}_excess/ci_{end}") for end in ("low", "high")]
        interval = f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if None not in ends else ""
        gold = results.get(f"{key}_gold")
        mark = "gets facts out" if name in out else ""
        shown = f"{results[f'{key}_excess']:+.2f}{interval}", DASH if gold is None else f"{gold:.2f}", mark
        lines.append((name, f"{target:.2f}", f"{results[f'{key}_control']:.2f}", *shown))
    return lines


HEADINGS = ("attack", "target", "control", "excess (95 %)", "gold", "")


def attack_table(results: Mapping[str, Any]) -> Table:
    """A rich table of ``attack_rows``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("attack", "") else "right")
    for line in attack_rows({key: value for key, value in results.items() if isinstance(value, int | float)}):
        table.add_row(*(Text(plain(cell), "red" if line[-1] else "") for cell in line))
    table.caption = Text("share of right answers at the best setting; control: unknown names with made-up facts", "dim")
    return table
