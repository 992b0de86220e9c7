"""The table of a fair comparison, from its summary.json and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from unlearn.report.fate import counted
from unlearn.report.names import DASH

if TYPE_CHECKING:
    from rich.table import Table

FINDING = 0.05
"""Adjusted p-value below which a number counts as different from the reference's, and gets an asterisk."""
HEADINGS = (
    "method",
    "score",
    "rank",
    "forget",
    "other words",
    "retain",
    "unseen",
    "perplexity",
    "C2ST",
    "robustness",
    "CPU s",
    "front",
) + ("verdict",)
SPARED = ("front", "CPU s", "perplexity", "other words", "rank", "C2ST", "robustness")
"""Columns that a narrow terminal is spared, in this order."""
RESULTS: Sequence[tuple[str, str]] = (
    ("forget/accuracy", ".2f"),
    ("forget/accuracy_paraphrased", ".2f"),
    ("retain/accuracy", ".2f"),
    ("retain/accuracy_unseen", ".2f"),
    ("generic/perplexity", ".3g"),
    ("latent/c2st_auc", ".2f"),
)


def rows_of(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of every method with a test, in the order of ``ordered``."""
    return [_row(name, summary) for name in ordered(summary)]


def ordered(summary: Mapping[str, Any]) -> list[str]:
    """Methods with a test: rows of reference first, then those with all seeds by rank, then the unfinished ones."""
    methods: Mapping[str, Any] = summary["methods"]
    return sorted(methods, key=lambda name: (methods[name]["tuned"], not methods[name]["complete"], methods[name].get("rank", 0.0)))


def label_of(name: str, summary: Mapping[str, Any]) -> str:
    """A method's name with what a reader must know of its row."""
    found = summary["methods"][name]
    seeds = "" if found["complete"] else f" ({len(found['seeds'])} of {len(summary['seeds'])} seeds)"
    return name + (" (reference)" if name == summary["reference"] else "" if found["tuned"] else " (not tuned)") + seeds


def _row(name: str, summary: Mapping[str, Any]) -> list[str]:
    found = summary["methods"][name]
    results = [_cell(found["results"].get(key), form) for key, form in RESULTS]
    rank = f"{found['rank']:.1f}" if "rank" in found else DASH
    front = {True: "yes", False: "-"}.get(found.get("pareto"), DASH)
    score = _cell(found["score"], ".2f", interval=True)
    goals = [_cell(found["robustness"], ".2f"), _cell(found["cost"], ".0f")]
    return [label_of(name, summary), score, rank, *results, *goals, front, counted(found["verdicts"]) or DASH]


def _cell(entry: Mapping[str, Any] | None, form: str, interval: bool = False) -> str:
    """Mean, an asterisk where it differs from the reference's, and the interval where it is asked for and not a point."""
    mean, low, high, p = (number_in(entry, name) for name in ("mean", "ci_low", "ci_high", "p_holm"))
    if mean is None:
        return DASH
    known = f" ({format(low, form)} to {format(high, form)})" if interval and low is not None and high is not None else ""
    return f"{format(mean, form)}{'*' if p is not None and p < FINDING else ''}{known}"


def number_in(entry: Mapping[str, Any] | None, name: str) -> float | None:
    """A number of an entry; None where it is missing or no number."""
    value = (entry or {}).get(name)
    return float(value) if isinstance(value, int | float) and value == value else None


def caption(summary: Mapping[str, Any]) -> str:
    """What the numbers are."""
    return (
        f"{summary['trials']} trials on validation rows, then means over {len(summary['seeds'])} seeds on test rows; * differs from "
        f"{summary['reference']} (paired permutation test over seeds and entities where there are, Holm-adjusted p < {FINDING})"
    )


def comparison_markdown(summary: Mapping[str, Any]) -> str:
    """The table as Markdown, without a newline at its end."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 2) + "---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows_of(summary))])


def comparison_lines(summary: Mapping[str, Any], width: int | None = None) -> Table:
    """The same for a terminal of ``width`` columns (None: wide enough).

    No word or number is broken: columns that do not fit are left out, those of ``SPARED`` first, and the caption names them. Only where
    the others do not fit either are words broken.
    """
    from rich.console import Console

    wide, spared = Console(width=1000), list[str]()
    table = _lines(summary)
    if width is None:
        return table
    for heading in SPARED:
        if wide.measure(table).minimum < width:
            break
        spared.append(heading)
        table = _lines(summary, spared)
    return table if wide.measure(table).minimum < width else _lines(summary, spared, whole=False)


def _lines(summary: Mapping[str, Any], spared: Sequence[str] = (), whole: bool = True) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    said = caption(summary) + (f"; no room for {', '.join(spared)}" if spared else "")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption_justify="left", caption=Text(said, "dim"))
    shown = [place for place, heading in enumerate(HEADINGS) if heading not in spared]
    for heading in (HEADINGS[place] for place in shown):
        broken = {"perplexity": "perp-\nlexity", "robustness": "robust-\nness"}.get(heading, heading.replace(" ", "\n"))
        widest = max(map(len, broken.splitlines())) if heading != "verdict" else len("forgotten")
        justify: Literal["left", "right"] = "left" if heading in ("method", "verdict") else "right"
        stiff = whole and heading == "method"
        table.add_column(broken, justify=justify, overflow="fold", no_wrap=stiff, min_width=widest if whole else None)
    for method, score, *cells, verdict in rows_of(summary):
        between = score.replace(" (", "\n").replace(" to ", " to\n").removesuffix(")")
        texts = (method.replace(" (", "\n("), between, *cells, verdict.replace(", ", "\n"))
        table.add_row(*(Text(texts[place]) for place in shown))
    return table
