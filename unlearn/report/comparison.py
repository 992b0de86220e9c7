"""The table of a fair comparison, from its summary.json and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
RESULTS: Sequence[tuple[str, str]] = (
    ("forget/accuracy", ".2f"),
    ("forget/accuracy_paraphrased", ".2f"),
    ("retain/accuracy", ".2f"),
    ("retain/accuracy_unseen", ".2f"),
    ("generic/perplexity", ".3g"),
    ("latent/c2st_auc", ".2f"),
)


def rows_of(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of every method with a test: reference rows first, then those with all seeds by rank, then the unfinished ones."""
    methods: Mapping[str, Any] = summary["methods"]
    order = sorted(methods, key=lambda name: (methods[name]["tuned"], not methods[name]["complete"], methods[name].get("rank", 0.0)))
    return [_row(name, methods[name], summary) for name in order]


def _row(name: str, found: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    seeds = "" if found["complete"] else f" ({len(found['seeds'])} of {len(summary['seeds'])} seeds)"
    label = name + (" (reference)" if name == summary["reference"] else "" if found["tuned"] else " (not tuned)") + seeds
    results = [_cell(found["results"].get(key), form) for key, form in RESULTS]
    rank = f"{found['rank']:.1f}" if "rank" in found else DASH
    front = {True: "yes", False: "-"}.get(found.get("pareto"), DASH)  # type: ignore[arg-type]
    words = Counter(word for word in found["verdicts"] if word)
    verdict = ", ".join(word if count == len(found["verdicts"]) else f"{word} {count}" for word, count in words.most_common()) or DASH
    score = _cell(found["score"], ".2f", interval=True)
    return [label, score, rank, *results, _cell(found["robustness"], ".2f"), _cell(found["cost"], ".0f"), front, verdict]


def _cell(entry: Mapping[str, Any] | None, form: str, interval: bool = False) -> str:
    """Mean, an asterisk where it differs from the reference's, and the interval where it is asked for and not a point."""
    if entry is None or not isinstance(mean := entry["mean"], int | float) or mean != mean:
        return DASH
    low, high = (entry[name] for name in ("ci_low", "ci_high"))
    known = interval and isinstance(low, int | float) and isinstance(high, int | float) and low == low
    star = "*" if isinstance(p := entry.get("p_holm"), int | float) and p < FINDING else ""
    return f"{format(mean, form)}{star}" + (f" ({format(low, form)} to {format(high, form)})" if known else "")


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


def comparison_lines(summary: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left", caption=Text(caption(summary), "dim"))
    for heading in HEADINGS:
        table.add_column(
            heading.replace(" ", "\n"),
            justify="left" if heading in ("method", "verdict") else "right",
            overflow="fold",
            no_wrap=heading == "method",
        )
    for row in rows_of(summary):
        table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row))
    return table
