"""Write the tables of README.md from results/*.json, between its markers.

    python experiments/reliability/table.py [--check]

``<!-- summary -->`` becomes one row for each part; ``<!-- part NAME -->`` the figures of results/NAME.json. Each ends at ``<!-- end -->``.
A part without a file is said to be missing. ``--check`` writes nothing and fails where README.md is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("ddp_equality", "sharded", "launch", "resume", "faults", "tracking_stack", "tracking_overhead")
MISSING = "not measured yet"
SAID = ("injected", "expected", "lost", "times", "outside")
"""Keys that the summary shows."""


def load(folder: Path, part: str) -> dict[str, Any] | None:
    """The figures of a part; None where there are none."""
    path = folder / f"{part}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {"rows": found}


def shown(value: Any) -> str:
    """One cell.

    >>> shown(0.12345), shown([]), shown(True), shown(["a|b", 3])
    ('0.123', '0', 'yes', 'a\\\\|b, 3')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items()) or "0"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(item) for item in value) or "0"
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with every key of ``rows`` as a column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(shown(row.get(column)) for column in columns) + " |" for row in rows])


def rows_of(figures: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The experiments that a part lists one by one, an empty list where it has one only."""
    lists = [value for value in figures.values() if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)]
    return lists[0] if lists else []


def times(figures: Mapping[str, Any]) -> Any:
    """How often a part did what it did."""
    counted = next((figures[key] for key in ("times", "how_often", "cases", "points") if isinstance(figures.get(key), int)), None)
    return counted if counted is not None else len(rows_of(figures)) or 1


def lost(figures: Mapping[str, Any]) -> Any:
    """What a part lost: its own word, else what was outside, else the sum over its rows."""
    for key in ("lost", "outside"):
        if key in figures:
            return figures[key]
    said = [row["lost"] for row in rows_of(figures) if "lost" in row]
    wrong = [value for value in said if value not in (0, "0", "nothing", "", [], None)]
    return (wrong or "nothing") if said else None


def summary(folder: Path) -> str:
    """One row for each part."""
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        figures = load(folder, part)
        if figures is None:
            rows.append({"part": part, "injected": MISSING})
            continue
        injected = figures.get("injected") or "; ".join(str(row["injected"]) for row in rows_of(figures) if "injected" in row)
        rows.append(
            {
                "part": part,
                "injected": injected or None,
                "how often": times(figures),
                "expected": figures.get("expected"),
                "lost": lost(figures),
            }
        )
    return table(rows)


def details(folder: Path, part: str) -> str:
    """All figures of a part: plain ones as a list, rows and groups as tables."""
    figures = load(folder, part)
    if figures is None:
        return f"`results/{part}.json`: {MISSING}."
    plain: list[str] = []
    tables: list[str] = []
    for key, value in figures.items():
        name = key.replace("_", " ")
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            tables.append(f"{name}:\n\n{table(value)}")
        elif isinstance(value, dict) and value and all(isinstance(row, dict) and row for row in value.values()):
            tables.append(f"{name}:\n\n{table([{'': label, **row} for label, row in value.items()])}")
        elif key not in SAID:
            plain.append(f"- {name}: {shown(value)}")
    return "\n\n".join([*(["\n".join(plain)] if plain else []), *tables])


def filled(text: str, folder: Path) -> str:
    """``text`` with everything between its markers written anew."""

    def one(match: re.Match[str]) -> str:
        part = match["part"]
        return f"{match['start']}\n\n{details(folder, part) if part else summary(folder)}\n\n<!-- end -->"

    return re.sub(r"(?P<start><!-- (?:summary|part (?P<part>\w+)) -->).*?<!-- end -->", one, text, flags=re.DOTALL)


def main() -> int:
    """Write README.md, or say whether it is as it would be written."""
    readme = HERE / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = filled(before, HERE / "results")
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.stderr.write("experiments/reliability/README.md must agree with results/*.json; run experiments/reliability/table.py\n")
        return int(before != after)
    readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
