"""How runs are called in a report, and numbers in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unlearn.tracking.reader import RunRecord

DASH = "–"
"""Stands for a value that is missing."""

BASE_METHOD = "none"
"""Method of a run that measures the original model."""

GOLD_METHOD = "gold"
"""Method of a run that measures the model which never saw the forget entities."""


def plain(text: object) -> str:
    """``text`` on one line, without control characters.

    >>> plain("a\\x1b[31m b\\n c")
    'a[31m b c'
    """
    printable = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in str(text))
    return re.sub(r" {2,}", " ", printable).strip()


def study_of(records: Sequence[RunRecord]) -> str:
    """The leading path that all names share, an empty string where there is none."""
    parts = [plain(record.name).split("/")[:-1] for record in records]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def labels_of(records: Sequence[RunRecord]) -> list[str]:
    """One short, distinct label for each run: its name without the part that all share; a number tells equal ones apart."""
    study = study_of(records)
    names = [plain(record.name)[len(study) :].lstrip("/") or "run" for record in records]
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return labels


def base_of(records: Sequence[RunRecord]) -> RunRecord | None:
    """The run that measures the original model, if there is exactly one."""
    found = [record for record in records if record.method == BASE_METHOD]
    return found[0] if len(found) == 1 else None


def original(record: RunRecord, key: str, base: RunRecord | None) -> float | None:
    """What the original model has for the result ``key``: the run's own ``<key>_base``, else the base run's value."""
    own = record.number(f"{key}_base")
    return own if own is not None or base is None else base.number(key)


def percent(share: float) -> str:
    """A share of 0 to 1 in percent; only exact ends are called 0 and 100.

    >>> percent(0.0), percent(0.004), percent(0.976), percent(0.997), percent(1.0)
    ('0 %', 'under 1 %', '98 %', 'over 99 %', '100 %')
    """
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them.

    >>> duration(8.21), duration(95), duration(7300)
    ('8.2 s', '1 min 35 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def large(value: float) -> str:
    """A number >= 0 that may be very large.

    >>> large(2.817), large(3183.4), large(2.5e9), large(float("inf"))
    ('2.82', '3,183', '2.5e+09', 'inf')
    """
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def number(value: float) -> str:
    """A number in three or four digits.

    >>> number(0.5), number(12345.6), number(3), number(0.00012), number(float("inf"))
    ('0.500', '12,346', '3', '1.20e-04', 'inf')
    """
    if value == int(value) if abs(value) < 1e15 else False:
        return f"{int(value):,}"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
