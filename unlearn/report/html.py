"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.errors import RunError
from unlearn.report.columns import COLUMNS, lines_of
from unlearn.report.names import BASE_METHOD, DASH, duration, labels_of, number, plain, study_of
from unlearn.report.provenance import provenance, settings
from unlearn.report.words import FORGOTTEN, IN_PART, headline, verdicts
from unlearn.tracking.files import write_atomic
from unlearn.tracking.reader import RunRecord

HERE = Path(__file__).parent

SETS = {
    "forget": "to be forgotten",
    "forget_paraphrased": "to be forgotten, in other words",
    "retain": "to be kept",
    "retain_unseen": "to be kept, in no loss",
    "unknown": "never known",
}
"""Evaluation set -> words."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the page: file name, description and SVG."""

    name: str
    text: str
    svg: Any


def write_report(records: Sequence[RunRecord], path: str | Path, figures: bool = False) -> Path:
    """Write the report of ``records`` to ``path`` and return it.

    ``figures`` also writes each figure as PNG and SVG to ``figures/`` beside it. A ``path`` that does not end in .html is taken as a
    folder. Everything that comes from a run is escaped. The page follows the reader's light or dark setting.

    Raises:
        RunError: there is no run.
    """
    if not records:
        raise RunError("A report needs at least one run; found none.")
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        target = target / "report.html"
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breaks"] = _breaks
    drawings = _drawings(records, target.parent / "figures" if figures else None)
    return write_atomic(target, environment.get_template("report.html").render(_page(records, drawings)))


def _page(records: Sequence[RunRecord], drawings: Sequence[Drawing]) -> dict[str, Any]:
    """What the template shows."""
    judged = verdicts(records)
    labels = labels_of(records)
    return {
        "css": _style(),
        "study": plain(records[0].name) if len(records) == 1 else study_of(records),
        "labels": labels,
        "headline": headline(judged),
        "verdicts": judged,
        "columns": COLUMNS,
        "lines": lines_of(records),
        "charts": [drawing for drawing in drawings if not drawing.name.startswith("picture_")],
        "pictures": [drawing for drawing in drawings if drawing.name.startswith("picture_")],
        "samples": [(label, _samples(record)) for label, record in zip(labels, records, strict=True) if record.method != BASE_METHOD],
        "results": _all_results(records),
        "settings": settings(records),
        "provenance": provenance(records),
        "cost": _cost(records),
        "forgotten": f"{FORGOTTEN:.0%}".replace("%", " %"),
        "in_part": f"{IN_PART:.0%}".replace("%", " %"),
    }


def _style() -> Any:
    """The style sheet with the palettes of ``style`` as variables."""
    from markupsafe import Markup

    from unlearn.report.style import DARK, PALETTE

    light, dark = ("".join(f"--{role}:{colour};" for role, colour in palette.items()) for palette in (PALETTE, DARK))
    sheet = (HERE / "report.css").read_text(encoding="utf-8")
    return Markup(f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{sheet}")


def _drawings(records: Sequence[RunRecord], folder: Path | None) -> list[Drawing]:
    from markupsafe import Markup

    from unlearn.report.figures import CURVES
    from unlearn.report.figures import figures as draw
    from unlearn.report.style import inline_svg, save

    texts = {
        "forget_retain": "Retain accuracy against forget accuracy; the upper left corner is where one wants to be.",
        "c2st": "AUC of the classifier two-sample test of each run, with the interval that two groups of unknown entities give.",
        **{
            f"steps_{key.rpartition('/')[2]}": f"{title}: {axis.replace(chr(10), ' ')}, over steps."
            for key, (title, axis) in CURVES.items()
        },
    }
    drawings = []
    for name, figure in draw(records).items():
        if folder is not None:
            save(figure, folder, name)
        text = (
            texts.get(name)
            or f"Activations of known, unknown and target entities before and after: {figure.axes[0].get_title(loc='left')}."
        )
        drawings.append(Drawing(name, text, Markup(inline_svg(figure, name))))  # noqa: S704
    return drawings


def _breaks(label: str) -> Any:
    """``label``, escaped, with places at which a long name may go on in the next line."""
    from markupsafe import Markup, escape

    return Markup("").join(Markup("{}<wbr>").format(part) if part in "_/-." else escape(part) for part in re.split(r"([_/.-])", label))


def _samples(record: RunRecord) -> list[dict[str, str]]:
    rows = []
    for row in record.samples:
        shown = {key: _answer(row.get(key)) for key in ("prompt", "reference", "before", "after")}
        name = str(row.get("set") or "")
        rows.append({"set": SETS.get(name, plain(name.replace("_", " "))), **shown})
    return rows


def _answer(value: object) -> str:
    """The text of an answer; an empty one is said to be empty."""
    return DASH if value is None else "".join(c for c in str(value) if c.isprintable() or c == "\n").strip() or "(nothing)"


def _all_results(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Every result key with one text for each run."""
    keys = sorted({key for record in records for key in record.results})
    return [(plain(key), [_result(record.results.get(key)) for record in records]) for key in keys]


def _result(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else plain(value) if value is not None and value != "" else DASH


def _cost(records: Sequence[RunRecord]) -> str:
    """Training time of all runs together, in words; empty where none was measured."""
    seconds = [value for record in records if (value := record.number("cost/train_seconds")) is not None]
    return duration(sum(seconds)) if seconds else ""
