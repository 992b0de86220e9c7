"""A study in the terminal: the table while it runs, its best trials at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from unlearn.sweep.outcome import SweepOutcome, TrialRecord

STYLES = {"running": "cyan", "pruned": "yellow", "failed": "red", "lost": "red", "interrupted": "yellow", "finished": "", "waiting": "dim"}
MOST = 16
"""Trials that the table shows while a study runs."""
MOST_COLUMNS = 8
"""Columns of results and settings together up to which every setting has its own."""
DASH = "–"
SHORT = 8
"""Characters of a head that need no break."""


def number(value: Any) -> str:
    """A value in few characters.

    >>> number(0.000123456), number(12), number(None), number("npo"), number(0.5)
    ('0.000123', '12', '–', 'npo', '0.5')
    """
    if value is None:
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def headline(outcome: SweepOutcome) -> Text:
    """How far the study has come."""
    parts = [f"{outcome.count('finished')} finished"]
    parts += [f"{outcome.count(state)} {state}" for state in ("running", "pruned", "failed", "lost", "interrupted") if outcome.count(state)]
    text = Text.assemble((outcome.name, "bold"), f": {', '.join(parts)}, of {outcome.wanted}")
    beyond = sum(trial.state == "finished" and not trial.feasible for trial in outcome.trials)
    if beyond:
        text.append(f"; {beyond} outside the constraints", style="dim")
    if outcome.best is not None:
        pairs = zip(outcome.objectives, outcome.best.values, strict=True)
        values = ", ".join(f"{title} {number(value)}" for title, value in pairs)
        what = "best" if len(outcome.objectives) == 1 else f"front of {len(outcome.front)}; first"
        text.append(f"\n{what}: trial {outcome.best.number}, {values}", style="green")
    return text


def trial_table(outcome: SweepOutcome, trials: Sequence[TrialRecord]) -> Table:
    """One row for each trial: number, state, objectives, constrained results, settings, seconds."""
    best = {trial.number for trial in outcome.front}
    results = [key for key in dict.fromkeys(k for t in trials for k in t.results) if key not in outcome.objectives]
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    many = len(outcome.objectives) + len(results) + len(keys) > MOST_COLUMNS
    if many:  # the distance to a number says enough
        results = [key for key in results if not any(f"|{key} - " in title for title in outcome.objectives)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("trial", justify="right", min_width=5)
    table.add_column("state", min_width=8)
    columns = [[number(t.values[i]) if t.values else DASH for t in trials] for i in range(len(outcome.objectives))]
    columns += [[number(t.results.get(key)) for t in trials] for key in results]
    for title, cells in zip((*outcome.objectives, *results), columns, strict=True):
        widest = max(map(len, (*_broken(title).splitlines(), *cells)))
        table.add_column(_broken(title), justify="right", min_width=widest)
    if many:
        columns.append([settings(trial) for trial in trials])
        table.add_column("settings", style="dim", min_width=13, overflow="fold")
    else:
        columns += [[number(t.params.get(key)) for t in trials] for key in keys]
        for key, cells in zip(keys, columns[-len(keys) :], strict=True):
            narrow = max(len(cell) if cell[:1].isdigit() else min(len(cell), 12) for cell in (*cells, DASH))
            table.add_column(_broken(key), justify="right", overflow="fold", min_width=narrow, style="dim", max_width=16)
    table.add_column("s", justify="right", min_width=3)
    for row, trial in enumerate(trials):
        state = Text(trial.state, style=STYLES[trial.state])
        state.append("" if trial.same_as is None else f" as {trial.same_as}", style="dim")
        state.append("" if trial.attempts == 1 else f" ({trial.attempts} times)", style="dim")
        seconds = f"{_spent(trial):.0f}" if _spent(trial) else DASH
        marked = Text(f"{'* ' if trial.number in best else ''}{trial.number}", style="green" if trial.number in best else "")
        style = "" if trial.feasible else "dim"
        table.add_row(marked, state, *(Text(cells[row]) for cells in columns), seconds, style=style)
    return table


def settings(trial: TrialRecord) -> str:
    """What was turned, in one text; sections that are plain from the key are left out."""
    names = {key: key.rpartition(".")[2] for key in trial.params}
    short = {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}
    return ", ".join(f"{short[key]}={number(value)}" for key, value in trial.params.items())


def _spent(trial: TrialRecord) -> float:
    """Seconds that a trial took, or has taken so far."""
    if trial.state == "running" and trial.started is not None:
        return (datetime.now(UTC) - trial.started).total_seconds()
    return trial.seconds


def _broken(key: str) -> str:
    """A key as the head of a narrow column, broken where one reads a break.

    >>> _broken("forget/accuracy_paraphrased").split(), _broken("|latent/c2st_auc - 0.5|").split("\\n"), _broken("optim.lr")
    (['forget/', 'accuracy_', 'paraphrased'], ['|latent/', 'c2st_auc', '- 0.5|'], 'optim.lr')
    """
    if len(key) <= SHORT:
        return key
    pieces = re.sub(r"(?<=[/.])(?=[^\d])|(?<=\w) (?=-)", "\n", key).splitlines()
    return "\n".join(piece if len(piece) <= SHORT + 1 else piece.replace("_", "_\n") for piece in (p.strip() for p in pieces))


def live(outcome: SweepOutcome, foot: str = "") -> Group:
    """What the terminal shows while the study runs: the best trials, and the latest; ``foot`` stands below."""
    shown = [trial for trial in outcome.trials if trial.state != "waiting"]
    if len(shown) > MOST:
        kept = {trial.number for trial in outcome.front[: MOST // 3]} | {trial.number for trial in shown if trial.state == "running"}
        latest = [trial.number for trial in reversed(shown) if trial.number not in kept]
        kept |= set(latest[: max(0, MOST - len(kept))])
        shown = [trial for trial in shown if trial.number in kept]
    return Group(headline(outcome), trial_table(outcome, shown), Text(foot, style="dim"))


def line(outcome: SweepOutcome, trial: TrialRecord) -> str:
    """One ended trial, for an output that is no terminal."""
    values = ", ".join(f"{t} {number(v)}" for t, v in zip(outcome.objectives, trial.values, strict=False))
    settings = ", ".join(f"{key} {number(value)}" for key, value in trial.params.items())
    how = f"{trial.state} as trial {trial.same_as}" if trial.same_as is not None else trial.state
    beyond = "" if trial.feasible else " outside the constraints;"
    return f"trial {trial.number} {how}:{beyond} {values or trial.reason.splitlines()[0] if values or trial.reason else ''} ({settings})"


def ranked(outcome: SweepOutcome, most: int = 5) -> list[TrialRecord]:
    """The best trials: the front, or with one objective the first ``most``."""
    if len(outcome.objectives) > 1:
        return list(outcome.front)
    sign = 1.0 if outcome.directions[0] == "minimize" else -1.0
    kept = [trial for trial in outcome.trials if trial.state == "finished" and trial.feasible]
    return sorted(kept, key=lambda trial: (sign * trial.values[0], trial.number))[:most]
