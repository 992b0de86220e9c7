"""Several seeds of one setting as one line: means with intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn.config.fingerprint import flatten
from unlearn.functional.statistics import bootstrap_interval
from unlearn.report.names import DASH, plain, study_of
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 2000
IGNORED = ("name", "seed", "out", "cache")
"""Settings that may differ within a group; all of ``tracking`` and ``trainer`` may as well."""

SEED = re.compile(r"[/_.-]?seed_?\d+$")
"""End of a run's name that tells it from the others of its setting."""

Summary = dict[str, dict[str, dict[str, float]]]

SHOWN: Mapping[str, tuple[str, str]] = {
    "forget/accuracy": ("forget", ".2f"),
    "forget/accuracy_paraphrased": ("other\nwords", ".2f"),
    "retain/accuracy": ("retain", ".2f"),
    "retain/accuracy_unseen": ("unseen", ".2f"),
    "generic/perplexity": ("per-\nplexity", ".3g"),
    "latent/c2st_auc": ("C2ST", ".2f"),
    "collapse/flag": ("col-\nlapsed", ".2f"),
    "cost/train_cpu_seconds": ("CPU\ns", ".0f"),
    "cost/training_memory_mb": ("MB", ".0f"),
}
"""Result key -> heading and format of the columns that a summary prints."""


def groups_of(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs that differ in their seed (and name) only, by a short label, in the order in which they come."""
    study = study_of(records)
    by_setting: dict[str, list[RunRecord]] = {}
    for record in records:
        setting = {k: v for k, v in flatten(record.config).items() if k not in IGNORED and k.split(".")[0] not in ("tracking", "trainer")}
        by_setting.setdefault(json.dumps(setting, sort_keys=True, default=str), []).append(record)
    found: dict[str, list[RunRecord]] = {}
    for group in by_setting.values():
        name = plain(group[0].name)[len(study) :].lstrip("/")
        label = SEED.sub("", name) or plain(group[0].method) or "run"
        while label in found:
            label += "'"
        found[label] = group
    return found


def summarise(records: Sequence[RunRecord]) -> Summary:
    """``{label: {key: {mean, ci_low, ci_high, n}}}`` over the seeds of each setting, for every result that is a number.

    The interval is the 95 % percentile bootstrap of the mean over seeds; with three seeds it is nearly their range. With one seed there is
    none (nan), and a key that some seeds lack counts those that have it.
    """
    summary: Summary = {}
    for label, group in groups_of(records).items():
        keys = dict.fromkeys(key for record in group for key in record.results)
        found = {key: [v for record in group if (v := record.number(key)) is not None] for key in keys}
        summary[label] = {key: _interval(values) for key, values in found.items() if values and not key.endswith(("/ci_low", "/ci_high"))}
    return summary


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(list(values), RESAMPLES, seed=0)
    return {"mean": float(sum(values) / len(values)), "ci_low": low, "ci_high": high, "n": len(values)}


def _text(entry: Mapping[str, float] | None, form: str) -> tuple[str, str]:
    """Mean, and its interval where there is one that is not a point."""
    if entry is None:
        return DASH, ""
    low, high = format(entry["ci_low"], form), format(entry["ci_high"], form)
    known = entry["ci_low"] == entry["ci_low"] and low != high
    return format(entry["mean"], form), f"{low}-{high}" if known else ""


def summary_table(summary: Summary, marks: Mapping[str, str]) -> Table:
    """A rich table of the columns in ``SHOWN``, one line for each setting.

    Args:
        summary: from ``summarise``.
        marks: what stands beside a label, such as ``inference`` for a method that changes no weight.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption_justify="left")
    table.add_column("setting", no_wrap=True)
    for heading, _ in SHOWN.values():
        table.add_column(heading, justify="right", vertical="top", overflow="fold")
    for label, entries in summary.items():
        cells = []
        for key, (_, form) in SHOWN.items():
            mean, interval = _text(entries.get(key), form)
            cells.append(Text.assemble(mean, ("\n" + interval.replace("-", "-\n") if interval else "", "dim")))
        table.add_row(Text.assemble(label, (f"\n{marks[label]}" if marks.get(label) else "", "dim")), *cells)
    counts = [int(entry["n"]) for entries in summary.values() for entry in entries.values()]
    seeds = "-".join(str(n) for n in sorted({min(counts), max(counts)}))
    table.caption = Text(f"mean over {seeds} seeds, 95 % bootstrap interval", "dim")
    return table


def summary_markdown(summary: Summary, marks: Mapping[str, str]) -> str:
    """The same columns as a Markdown table that ends in a newline."""
    lines = [
        "| setting | " + " | ".join(heading.replace("-\n", "").replace("\n", " ") for heading, _ in SHOWN.values()) + " |",
        "|---|" + "---:|" * len(SHOWN),
    ]
    for label, entries in summary.items():
        cells = [_text(entries.get(key), form) for key, (_, form) in SHOWN.items()]
        shown = " | ".join(f"{mean} ({interval})" if interval else mean for mean, interval in cells)
        lines.append(f"| {label}{f' ({marks[label]})' if marks.get(label) else ''} | {shown} |")
    return "\n".join(lines) + "\n"


def marks_of(records: Sequence[RunRecord]) -> dict[str, str]:
    """``inference only`` for the settings whose manifest says that no weight changes."""
    return {label: "inference only" if group[0].manifest.get("intervention") else "" for label, group in groups_of(records).items()}


def plain_summary(summary: Summary) -> dict[str, Any]:
    """``summary`` for a JSON file: nan as null."""
    return {
        label: {key: {name: None if v != v else v for name, v in entry.items()} for key, entry in entries.items()}
        for label, entries in summary.items()
    }
