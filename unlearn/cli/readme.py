"""The generated parts of a README: tables of plug-ins, from the registry; and a table of results, from a study."""

from __future__ import annotations

import re
from pathlib import Path

from unlearn.errors import UnlearnError
from unlearn.registry import Entry, entries


def methods_table() -> str:
    """Markdown table of the methods."""
    lines = ["| method | family | what it does | needs | paper |", "|---|---|---|---|---|"]
    for entry in entries("method").values():
        paper = str(entry.facts.get("paper") or "")
        link = f"[{paper.rsplit('/', 1)[-1]}]({paper})" if paper else "-"
        needs = ", ".join(entry.facts.get("needs") or ()).replace("_", " ") or "-"
        lines.append(
            f"| [`{entry.name}`]({_file(entry)}) | {entry.facts.get('family', '')} | {entry.facts['summary']} | {needs} | {link} |"
        )
    return "\n".join(lines)


def sources_table() -> str:
    """Markdown table of the data sources."""
    lines = ["| source | what it serves |", "|---|---|"]
    lines += [f"| [`{entry.name}`]({_file(entry)}) | {entry.facts['summary']} |" for entry in entries("source").values()]
    return "\n".join(lines)


def makers_table() -> str:
    """Markdown table of the makers of forget sets."""
    lines = ["| maker | what it does | paper |", "|---|---|---|"]
    for entry in entries("maker").values():
        paper = str(entry.facts["paper"])
        lines.append(f"| [`{entry.name}`]({_file(entry)}) | {entry.facts['summary']} | [{paper.rsplit('/', 1)[-1]}]({paper}) |")
    return "\n".join(lines)


def attacks_table() -> str:
    """Markdown table of the attacks."""
    lines = ["| attack | what it does | in `quick` | source |", "|---|---|---|---|"]
    for entry in entries("attack").values():
        paper = str(entry.facts["paper"])
        quick = "yes" if entry.facts.get("quick") is not None else "-"
        lines.append(f"| [`{entry.name}`]({_file(entry)}) | {entry.facts['summary']} | {quick} | [{paper.rsplit('/', 1)[-1]}]({paper}) |")
    return "\n".join(lines)


def _file(entry: Entry) -> str:
    return entry.origin.rsplit(":", 1)[0]


COMPARISON = Path("experiments") / "world_comparison" / "results" / "summary.json"
"""Where the comparison's summary is, from the README's folder."""


def comparison_table() -> str:
    """Markdown table of the fair comparison, as far as it has come."""
    from unlearn.registry import PACKAGE
    from unlearn.report.comparison import caption, comparison_markdown
    from unlearn.tracking.files import read_json

    summary = read_json(PACKAGE.parent / COMPARISON)
    if not summary:
        return "Nothing has been measured yet."
    done = summary["progress"]
    left = "" if done["tests"] == done["tests_in_all"] else f" So far {done['tests']} of {done['tests_in_all']} tests are made."
    return f"{comparison_markdown(summary)}\n\n{caption(summary)}.{left}"


MEMORY = Path("experiments") / "memory" / "results" / "presets.json"
"""Where the memory of the presets is estimated, from the README's folder."""


def hardware_table() -> str:
    """Markdown table of what the presets take on every device."""
    from unlearn.registry import PACKAGE
    from unlearn.tracking.files import read_json

    found = read_json(PACKAGE.parent / MEMORY)
    lines = ["| preset and further keys | devices | GB on each | weights | training | activations | evaluation |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for row in found["rows"]:
        parts = " | ".join(f"{row['parts_gb'][name]:.1f}" for name in ("weights", "training", "activations"))
        keys = " ".join(f"`{word}`" for word in row["words"])
        lines.append(f"| {row['preset']} {keys} | {row['devices']} | {row['peak_gb']:.1f} | {parts} | {row['measuring_gb']:.1f} |")
    return "\n".join(lines)


PARTS = {
    "methods": methods_table,
    "sources": sources_table,
    "makers": makers_table,
    "attacks": attacks_table,
    "comparison": comparison_table,
    "hardware": hardware_table,
}


def filled(text: str) -> str:
    """``text`` with every generated part between ``<!-- name -->`` and ``<!-- /name -->`` made anew.

    Raises:
        UnlearnError: a pair of marks is missing.
    """
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise UnlearnError(f"The README must hold <!-- {name} --> and <!-- /{name} -->; found no such pair.")
        table = make()
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


def update(path: Path, check: bool) -> None:
    """Write the generated parts of ``path``, or with ``check`` complain when one is out of date.

    Raises:
        UnlearnError: with ``check``, the file is not as it would be written.
    """
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if new == old:
        return
    if check:
        raise UnlearnError(f"{path} must hold the tables that the registry gives; found older ones. Run make docs.")
    path.write_text(new, encoding="utf-8")
