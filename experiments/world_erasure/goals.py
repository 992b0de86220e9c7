"""What was to be reached, mean over the fresh cells, and whether it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cells import FRESH, Cell
from pictures import averaged, recovered

Results = Mapping[str, float]
TRAINED = ("relearn", "relearn_long")
"""Relearning as the adversary inside does it; for more steps in ``relearn_long``."""
OTHERS = ("relearn_lora", "relearn_half", "relearn_benign", "relearn_statements", "prompt", "sample", "search", "probe", "lens")
RANKS = ("rank", "rank_statement", "rank_indirect")


class Goal(NamedTuple):
    """A figure, how it is to be, and the setting of which it is asked."""

    name: str
    value: Callable[[Results], float | None]
    most: bool
    """Whether ``limit`` is the most or the least."""
    limit: float
    setting: str = "sae_erase"
    digits: int = 2

    def met(self, value: float) -> bool:
        """Whether a mean is as it was asked."""
        return value <= self.limit if self.most else value >= self.limit


def _key(key: str) -> Callable[[Results], float | None]:
    return lambda found: found.get(key)


def _beyond(name: str) -> Callable[[Results], float | None]:
    """What an attack gets out beyond its control."""

    def value(found: Results) -> float | None:
        got, control = recovered(found, name), found.get(f"attack/{name}_control")
        return None if got is None or control is None else got - control

    return value


def _of_base(found: Results) -> float | None:
    keys = ("generic/perplexity", "generic/perplexity_base")
    return found[keys[0]] / found[keys[1]] if all(key in found for key in keys) else None


GOALS = [
    Goal("answers about targets", _key("forget/accuracy"), True, 0.02),
    Goal("the same in other words", _key("forget/accuracy_paraphrased"), True, 0.02),
    Goal("answers about people who are kept", _key("retain/accuracy"), False, 0.99, digits=3),
    Goal("answers about people in no loss", _key("retain/accuracy_unseen"), False, 0.98, digits=3),
    Goal("answers about people in no loss, without replay", _key("retain/accuracy_unseen"), False, 0.95, "no_replay", 3),
    Goal("perplexity / base", _of_base, True, 1.01, digits=3),
    Goal("C2ST in its null, share of the places", _key("latent/c2st_inside"), False, 0.85),
    *(Goal(f"{name} beyond control".replace("_", " "), _beyond(name), True, 0.05) for name in TRAINED),
    *(Goal(f"{name} beyond control".replace("_", " "), _beyond(name), True, 0.10) for name in OTHERS),
    *(Goal(name, _key(f"attack/{name}_accuracy"), True, 0.05, digits=3) for name in ("steer", "patch")),
    *(Goal(name.replace("_", " "), _key(f"attack/{name}_accuracy"), True, 0.05) for name in ("quantise_int8", "quantise_int4")),
]


def goals(found: Mapping[Cell, Results]) -> str:
    """A line for each goal, with the 95 % bootstrap interval over cells, and beside it the gold model and ``lean``."""
    lines = ["| goal | asked | mean over cells | gold | cells | reached | lean | reached |", "|---|---:|---:|---:|---:|---|---:|---|"]
    for goal in GOALS:
        asked = f"{'≤' if goal.most else '≥'} {goal.limit:g}"
        own, gold = (_mean(_values(found, setting, goal.value), goal.digits) for setting in (goal.setting, "gold"))
        lean = _mean(_values(found, "lean", goal.value) if goal.setting == "sae_erase" else [], goal.digits)
        lines.append(_line(goal.name, asked, own, gold, lean, goal.met))
    for name in RANKS:
        own, gold, lean = (_mean(_values(found, setting, _key(f"forget/{name}"))) for setting in ("sae_erase", "gold", "lean"))
        words = name.replace("rank", "rank of the true value").replace("_", ", ")
        low, high = (gold.low, gold.high) if gold.value is not None else (1.0, 0.0)
        lines.append(_line(words, "in gold's interval", own, gold, lean, lambda value, low=low, high=high: low <= value <= high))
    return "\n".join(lines) + "\n"


class _Mean(NamedTuple):
    value: float | None
    low: float
    high: float
    n: int
    text: str


def _mean(values: list[float], digits: int = 2) -> _Mean:
    if not values:
        return _Mean(None, 0.0, 0.0, 0, "–")
    mean, low, high = averaged(values)
    return _Mean(mean, low, high, len(values), f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")


def _values(found: Mapping[Cell, Results], setting: str, value: Callable[[Results], float | None]) -> list[float]:
    """A figure of each fresh cell of a setting that has it."""
    rows = [results for cell, results in found.items() if cell.setting == setting and cell.place in FRESH]
    return [v for r in rows if (v := value(r)) is not None]


def _line(name: str, asked: str, own: _Mean, gold: _Mean, lean: _Mean, met: Callable[[float], bool]) -> str:
    said = [" – " if mean.value is None else " yes " if met(mean.value) else " no " for mean in (own, lean)]
    return f"| {name} | {asked} | {own.text} | {gold.text} | {own.n} of {len(FRESH)} |{said[0]}| {lean.text} |{said[1]}|"
