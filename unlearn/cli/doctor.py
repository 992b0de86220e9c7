"""``unlearn doctor``: looks at the machine and at what a configuration needs. A broken piece is a line of its output, never a crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from unlearn.cli.console import console
from unlearn.errors import ConfigError, UnlearnError

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line: ``status`` is ok, warn or fail, ``what`` the piece looked at, ``remedy`` what to do about it; ``facts`` for programs."""

    status: str
    what: str
    text: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[], Iterator[Finding]]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line asks for.

    ``quick`` loads no weights. ``gpu_memory`` (GB) and ``devices`` describe GPUs that are not here, to see whether a run would fit.
    ``label`` is the file for known and unknown names; None labels nothing.
    """

    quick: bool = False
    gpu_memory: float | None = None
    devices: int | None = None
    label: Path | None = None
    as_json: bool = False


def guarded(what: str, check: Check, remedy: str = "") -> Iterator[Finding]:
    """The findings of ``check``; if it raises, what it raised, as failures with that remedy."""
    try:
        yield from check()
    except ConfigError as error:
        yield from (Finding("fail", what, problem, remedy) for problem in error.problems)
    except UnlearnError as error:
        yield from (Finding("fail", what, line, remedy) for line in str(error).splitlines())
    except Exception as error:  # the point of this command is to report whatever is broken
        lines = str(error).strip().splitlines() or ["no message"]
        yield Finding("fail", what, f"{type(error).__name__}: {lines[0]}", remedy)


def examine(words: Sequence[str], wishes: Wishes = Wishes()) -> int:  # noqa: B008 a frozen default
    """Print every finding; with ``words``, also about the configuration they describe. Return 1 if anything fails, else 0."""
    from unlearn.cli.inspection import Inspection
    from unlearn.cli.machine import checks

    inspection = Inspection(words, wishes)
    found: list[Finding] = []
    for title, group in (("machine", checks(inspection)), ("configuration", inspection.checks() if words else [])):
        if group and not wishes.as_json:
            console().print(Text(title, style="bold"))
        for what, check in group:
            with console(stderr=True).status(f"{what} ..."):
                findings = list(guarded(what, check, inspection.remedy(what)))
            found += findings
            for finding in findings if not wishes.as_json else ():
                console().print(_line(finding))
    counts = {status: sum(f.status == status for f in found) for status in STYLES}
    verdict = "fail" if counts["fail"] else "warn" if counts["warn"] else "ok"
    if wishes.as_json:
        report = {"verdict": verdict, **counts, "findings": [asdict(finding) for finding in found]}
        console().print_json(json.dumps(report), indent=1)
    else:
        text = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        console().print(Text(text, style=STYLES[verdict]))
    return 1 if counts["fail"] else 0


def _line(finding: Finding) -> Group:
    head = Text.assemble("  ", (f"{finding.status:<4}", STYLES[finding.status]), "  ", (f"{finding.what:<12}", "cyan"), " ")
    width = max(console().width - head.cell_len, 30)
    rows = list(Text(finding.text).wrap(console(), width))
    rows += [row for row in Text(finding.remedy, style="dim").wrap(console(), width) if finding.remedy]
    for row in rows:
        row.rstrip()
    indent = " " * head.cell_len
    return Group(*(Text.assemble(head if i == 0 else indent, row) for i, row in enumerate(rows)))
