"""A report in every form: one HTML page, Markdown, LaTeX tables, and all figures as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.errors import RunError
from unlearn.tracking.files import dump_json, read_json, write_atomic
from unlearn.tracking.reader import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM = "report"
"""Name of the files in a folder that gets all forms."""
WRITTEN = ".written.json"
"""File beside the figures of a report that lists them."""


Comparison = Mapping[str, Any]
"""A comparison's summary, see ``unlearn.report.sheets.read_summary``."""


def write_report(records: Sequence[RunRecord], path: str | Path, comparison: Comparison | None = None) -> list[Path]:
    """Write the report of ``records`` and return its files, figures left out.

    With the summary of a ``comparison`` whose tests the runs are, it shows ranks, tests, front, and tuning; then there may be no runs, and
    the report says what the summary says.

    A ``path`` that ends in .html, .md or .tex gets that form; any other is a folder that gets all three, named ``report``. Each figure
    goes as PNG and SVG to the folder ``<name>_figures`` beside them; figures that an earlier report left there are deleted.

    Raises:
        RunError: there is no run, or ``path`` is a file's name of another kind.
    """
    if not records and comparison is None:
        raise RunError("A report needs at least one run; found none.")
    forms, target = _forms(), Path(path)
    suffix = target.suffix.lower()
    if suffix in (".pdf", ".csv", ".txt", ".png", ".svg", ".json"):
        raise RunError(f"--out must end in .html, .md or .tex, or be a folder, which gets them all; found {str(path)!r}.")
    wanted = [target] if suffix in forms else [target / f"{STEM}{form}" for form in (".html", ".md", ".tex")]
    from unlearn.report.figures import figures as draw

    figures, folder = draw(records, comparison), figures_of(wanted[0])
    keep_figures(figures, folder)
    return [write_atomic(file, forms[file.suffix.lower()](records, figures, folder.name, comparison)) for file in wanted]


def figures_of(report: Path) -> Path:
    """Where the figures of the report at ``report`` lie."""
    return report.with_name(f"{report.stem}_figures")


def keep_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write the figures, and delete those of an earlier report in the same place that this one has not.

    ``WRITTEN`` in the folder says what a report wrote there, with the hash of each file. Only a file that is listed and unchanged is
    deleted; everything else in the folder belongs to somebody else.
    """
    from unlearn.report.style import save

    before = read_json(folder / WRITTEN)
    made = {file.name: digest(file) for name, figure in figures.items() for file in save(figure, folder, name)}
    for name, mark in before.items():
        file = folder / name
        if name not in made and name == Path(name).name and file.is_file() and not file.is_symlink() and digest(file) == mark:
            file.unlink()
    if made:
        write_atomic(folder / WRITTEN, dump_json(made, indent=1) + "\n")
    elif before:
        (folder / WRITTEN).unlink()


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    return sha256(file.read_bytes()).hexdigest()


def _forms() -> dict[str, Callable[[Sequence[RunRecord], Mapping[str, Figure], str, Comparison | None], str]]:
    """Ending -> what makes the text from records, figures, the name of the figures' folder, and a comparison's summary."""
    from unlearn.report.html import render
    from unlearn.report.latex import latex
    from unlearn.report.markdown import markdown

    def page(records: Sequence[RunRecord], figures: Mapping[str, Figure], folder: str, comparison: Comparison | None) -> str:
        return render(records, figures, comparison)

    return {".html": page, ".htm": page, ".md": markdown, ".tex": latex}
