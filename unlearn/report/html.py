"""The report as one HTML text that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.report.columns import columns_of, lines_of
from unlearn.report.figures import WIDE, describe
from unlearn.report.headline import headline
from unlearn.report.names import DASH, duration, labels_of, number, plain, study_of
from unlearn.report.objectives import MOST_NAMED, standing
from unlearn.report.pool import ENDS, Setting, pool
from unlearn.report.provenance import runs, settings
from unlearn.report.relearning import attacked
from unlearn.report.samples import questions
from unlearn.report.sheets import outcome, sheets, tests_of
from unlearn.report.words import FORGOTTEN, IN_PART, verdicts
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
CHARTS: Mapping[str, tuple[str, ...]] = {
    "front": ("front", "forget_retain", "hidden"),
    "latent": ("c2st", "steps_"),
    "answers": ("answers",),
    "attacks": ("relearn", "relearning"),
    "pictures": ("picture_",),
}
"""Section of the page -> names, or beginnings of names, of its figures."""
FEW_PICTURES, FEW_QUESTIONS = 8, 12
"""Pictures and questions that are shown before the reader asks for more."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the page: file name, description and SVG."""

    name: str
    text: str
    svg: Any
    wide: bool


def render(records: Sequence[RunRecord], figures: Mapping[str, Figure], comparison: Mapping[str, Any] | None = None) -> str:
    """The page; with the summary of a ``comparison`` it begins with that, and there may be no records.

    Everything that comes from a run is escaped; colours follow the reader's light or dark setting."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breaks"] = breaks
    return environment.get_template("report.html").render(_page(pool(records), _drawings(figures), comparison))


def _page(pooled: Sequence[Setting], drawings: Sequence[Drawing], comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the template shows."""
    judged, columns = verdicts(pooled), columns_of(pooled)
    first = set(standing(pooled)[:MOST_NAMED]) if len(pooled) > MOST_NAMED else set(range(len(pooled)))
    names, lines = attacked(pooled)
    every = [run for setting in pooled for run in setting.runs]
    asked = questions(pooled)
    return {
        "css": _style(),
        "study": title_of(pooled, comparison),
        "outcome": "" if comparison is None else outcome(comparison),
        "sheets": [] if comparison is None else sheets(comparison, provenance=len(every) < tests_of(comparison)),
        "methods": 0 if comparison is None else len(comparison["methods"]),
        "tests": 0 if comparison is None else tests_of(comparison),
        "labels": labels_of(pooled),
        "headline": headline(judged, noun_of(pooled)),
        "verdicts": [v for i, v in enumerate(judged) if i in first],
        "others": [v for i, v in enumerate(judged) if i not in first],
        "columns": columns,
        "lines": lines_of(pooled, columns),
        "alarm": next(index for index, column in enumerate(columns) if column.heading == "collapsed"),
        "charts": {section: [d for d in drawings if _belongs(d.name, names)] for section, names in CHARTS.items()},
        "few_pictures": FEW_PICTURES,
        "attacks": names,
        "attacked": lines,
        "asked": asked[:FEW_QUESTIONS],
        "asked_more": asked[FEW_QUESTIONS:],
        "sampled": sorted({seed for setting in pooled for seed in setting.seeds[:1]}),
        "results": all_results(pooled),
        "settings": settings(pooled),
        "runs": runs(pooled),
        "several": len(every) > len(pooled),
        "cost": _cost(every),
        "forgotten": f"{FORGOTTEN:.0%}".replace("%", " %"),
        "in_part": f"{IN_PART:.0%}".replace("%", " %"),
    }


def title_of(pooled: Sequence[Setting], comparison: Mapping[str, Any] | None = None) -> str:
    """The comparison, the study, or the only run."""
    if comparison is not None:
        return plain(comparison.get("name") or study_of(pooled) or "Comparison of methods")
    return plain(pooled[0].name) if len(pooled) == 1 else study_of(pooled)


def noun_of(pooled: Sequence[Setting]) -> str:
    """What a row of the report is."""
    return "setting" if any(len(setting.runs) > 1 for setting in pooled) else "run"


def _belongs(name: str, wanted: Sequence[str]) -> bool:
    return any(name == one or (one.endswith("_") and name.startswith(one)) for one in wanted)


def _style() -> Any:
    """The style sheet with the palettes of ``style`` as variables."""
    from markupsafe import Markup

    from unlearn.report.style import DARK, PALETTE

    light, dark = ("".join(f"--{role}:{colour};" for role, colour in palette.items()) for palette in (PALETTE, DARK))
    sheet = (HERE / "report.css").read_text(encoding="utf-8")
    return Markup(f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{sheet}")


def _drawings(figures: Mapping[str, Figure]) -> list[Drawing]:
    from markupsafe import Markup

    from unlearn.report.svg import inline_svg

    return [
        Drawing(name, describe(name, figure), Markup(inline_svg(figure, name)), name in WIDE)  # noqa: S704
        for name, figure in figures.items()
    ]


def breaks(label: str) -> Any:
    """``label``, escaped, with places at which a long name may go on in the next line."""
    from markupsafe import Markup, escape

    return Markup("").join(Markup("{}<wbr>").format(part) if part in "_/-." else escape(part) for part in re.split(r"([_/.-])", label))


def all_results(pooled: Sequence[Setting]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every result key with (value, interval) for each setting."""
    keys = sorted({key for setting in pooled for key in setting.results if not key.endswith(ENDS)})
    return [(plain(key), [(_result(setting.results.get(key)), _between(setting, key)) for setting in pooled]) for key in keys]


def _result(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else plain(value) if value is not None and value != "" else DASH


def _between(setting: Setting, key: str) -> str:
    ends = setting.interval(key)
    return f"{number(ends[0])} to {number(ends[1])}" if ends else ""


def _cost(records: Sequence[RunRecord]) -> str:
    """Training time of all runs together, in words; empty where none was measured."""
    seconds = [value for record in records if (value := record.number("cost/train_seconds")) is not None]
    return duration(sum(seconds)) if seconds else ""
