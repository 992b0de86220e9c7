"""A fair comparison as tables for every form of a report, from its summary.json and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.errors import RunError
from unlearn.functional.objective import AXES
from unlearn.report.comparison import FINDING, RESULTS, label_of, number_in, ordered
from unlearn.report.fate import counted
from unlearn.report.names import DASH, plain
from unlearn.tracking.files import read_json

SUMMARY, STUDY = "summary.json", "study.json"
TITLES: Mapping[str, str] = {
    "forget/accuracy": "forget accuracy ↓",
    "forget/accuracy_paraphrased": "forget, other words ↓",
    "retain/accuracy": "retain accuracy ↑",
    "retain/accuracy_unseen": "retain, unseen ↑",
    "generic/perplexity": "perplexity ↓",
    "latent/c2st_auc": "C2ST AUC",
}
"""Result -> heading."""
FEW = 6
"""Names that a sentence tells."""


@dataclass(frozen=True)
class Value:
    """``text``, and what stands small below it: an interval, a p-value, a remark."""

    text: str = DASH
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """One table: ``head`` and ``rows`` of equal length; the columns in ``words`` are flush left; ``long`` ones run over pages."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    words: tuple[int, ...] = (0,)
    long: bool = False


def is_ledger(folder: Path) -> bool:
    """Whether a folder holds the files of a comparison."""
    return (folder / STUDY).is_file() and (folder / SUMMARY).is_file()


def read_summary(ledger: Path) -> dict[str, Any]:
    """The summary in a comparison's ledger.

    Raises:
        RunError: there is none.
    """
    summary = read_json(ledger / SUMMARY)
    if not {"methods", "seeds", "trials", "reference"} <= summary.keys():
        raise RunError(f"{ledger / SUMMARY} must be the summary of a comparison; found {'another file' if summary else 'none'}.")
    return summary


def tests_of(summary: Mapping[str, Any]) -> int:
    """How many tests the summary is made of."""
    return sum(len(found["seeds"]) for found in summary["methods"].values())


def sheets(summary: Mapping[str, Any], provenance: bool = True) -> list[Sheet]:
    """Goals, results, tuning and, where asked for, what made every test."""
    if not summary["methods"]:
        return []
    made = [_goals(summary), _results(summary), _tuning(summary)]
    return [*made, _made(summary)] if provenance else made


def _goals(summary: Mapping[str, Any]) -> Sheet:
    """Rank, score and the five goals with the tests against the reference, the front, and the verdicts of the attacks."""
    head = ("method", "mean rank ↓", "score ↑", *(f"{axis}{' (CPU s) ↓' if axis == 'cost' else ' ↑'}" for axis in AXES))
    rows = []
    for name in ordered(summary):
        found = summary["methods"][name]
        rank = Value(f"{found['rank']:.1f}") if "rank" in found else Value()
        axes = [_value(found[axis], ".0f" if axis == "cost" else ".2f") for axis in AXES]
        goals = [rank, _value(found["score"], ".2f"), *axes, _front(found), Value(counted(found["verdicts"]) or DASH)]
        rows.append((Value(plain(label_of(name, summary))), *goals))
    return Sheet("goals", "Ranks and goals", (*head, "Pareto front", "verdict"), tuple(rows), _goals_note(summary), (0, len(head) + 1))


def _goals_note(summary: Mapping[str, Any]) -> str:
    attacks = summary.get("attacks") or "none"
    return (
        f"Means over {len(summary['seeds'])} seeds on test rows; below them the 95 % bootstrap interval and the p-value. {tested(summary)} "
        "The score is the harmonic mean of forgetting, other words, retention, unseen, fluency and indistinguishability, or minus the "
        "damage of a damaged model; the rank is the mean over seeds of its rank among tuned methods with all seeds. Forgetting is the "
        "worse of both wordings; retention the worst of answers about others, about those in no loss, and fluency; indistinguishability 1 "
        "where the classifier test is at chance; robustness 1 minus the most that an attack gets out beyond control and gold model; cost "
        "CPU seconds of training. A method is on the Pareto front when no other one is at least as good in all five and better in one. "
        f"Attacks: {plain(attacks).replace(',', ', ')}. Verdicts of attacks are counted over seeds."
    )


def tested(summary: Mapping[str, Any]) -> str:
    """What the asterisk means, and what it cannot tell."""
    seeds = len(summary["seeds"])
    text = (
        f"An asterisk marks what differs from {plain(summary['reference'])}: paired permutation test, p below {FINDING:g} after Holm's "
        "adjustment over the methods. Score and goals are paired by seed, results of entities by seed and entity, where a small p with few "
        "seeds speaks about these models more than about their methods."
    )
    if least_p(seeds) >= FINDING:
        text += f" With {seeds} seeds no test by seed can get below p = {least_p(seeds):.2g}, so that none of them can find a difference."
    return text


def least_p(seeds: int) -> float:
    """The smallest p-value of a two-sided test that flips the signs of ``seeds`` differences.

    >>> least_p(5), least_p(1)
    (0.0625, 1.0)
    """
    return min(1.0, 2.0 / 2**seeds)


def _front(found: Mapping[str, Any]) -> Value:
    if "pareto" not in found:
        return Value()
    beaten = [plain(name) for name in found.get("dominated_by", ())]
    more = f" and {len(beaten) - 1} more" if len(beaten) > 1 else ""
    return Value("yes") if found["pareto"] else Value("no", (f"beaten by {beaten[0]}{more}",) if beaten else ())


def _results(summary: Mapping[str, Any]) -> Sheet:
    """The main results with the tests against the reference."""
    rows = tuple(
        (Value(plain(label_of(name, summary))), *(_value(summary["methods"][name]["results"].get(key), form) for key, form in RESULTS))
        for name in ordered(summary)
    )
    note = "Intervals resample seeds, and the entities within them where entities have values. The asterisk is that of the table of goals."
    return Sheet("results", "Results on test rows", ("method", *(TITLES[key] for key, _ in RESULTS)), rows, note)


def _tuning(summary: Mapping[str, Any]) -> Sheet:
    """What each tuned method was given, and the setting that was chosen."""
    rows = []
    for name in ordered(summary):
        found = summary["methods"][name]
        if not found["tuned"]:
            continue
        budget = found.get("tuning") or {}
        ended: Mapping[str, int] = budget.get("trials") or {}
        others = tuple(f"{count} {plain(state)}" for state, count in ended.items() if state != "finished")
        trials = Value(str(sum(ended.values())), others) if ended else Value()
        cpu, score = number_in(budget, "cpu_seconds"), number_in(found, "tuning_score")
        spent = Value() if cpu is None else Value(f"{cpu:.0f}")
        validated = Value() if score is None else Value(f"{score:.2f}")
        chosen = ", ".join(f"{plain(key)}={_setting(value)}" for key, value in found["params"].items()) or "nothing turned"
        rows.append((Value(plain(name)), trials, spent, validated, _value(found["score"], ".2f", p=False), Value(chosen)))
    note = (
        f"Every method had the same budget of {summary['trials']} trials, its default setting first, on validation entities and wordings; "
        "the trial with the best score was chosen. CPU seconds are those of all trials."
    )
    head = ("method", "trials", "CPU s", "score, validation", "score, test", "chosen setting")
    return Sheet("tuning", "Tuning", head, tuple(rows), note, (0, 5), long=True)


def _made(summary: Mapping[str, Any]) -> Sheet:
    """Seed, fingerprint and commit behind every number."""
    keys = {"seed": None, "fingerprint": None, "commit": 12}
    rows = [
        (Value(plain(name)), *(Value(plain(DASH if one.get(key) is None else one[key])[:most]) for key, most in keys.items()))
        for name in ordered(summary)
        for one in summary["methods"][name].get("made", ())
    ]
    return Sheet("tests", "Tests", ("method", "seed", "fingerprint", "commit"), tuple(rows), "", (0, 1, 2, 3), long=True)


def _value(entry: Mapping[str, Any] | None, form: str, p: bool = True) -> Value:
    """A mean with its asterisk, interval and p-value."""
    mean, low, high, adjusted = (number_in(entry, name) for name in ("mean", "ci_low", "ci_high", "p_holm"))
    if mean is None:
        return Value()
    ends = [] if low is None or high is None else [format(end, form) for end in (low, high)]
    between = [" to ".join(ends)] if len(set(ends)) == 2 else []
    test = [] if adjusted is None or not p else [f"p = {adjusted:.2g}"]
    return Value(f"{format(mean, form)}{'*' if test and adjusted is not None and adjusted < FINDING else ''}", (*between, *test))


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def outcome(summary: Mapping[str, Any]) -> str:
    """The comparison in plain words."""
    methods: Mapping[str, Any] = summary["methods"]
    tuned = [name for name in methods if methods[name]["tuned"]]
    ranked = [name for name in ordered(summary) if "rank" in methods[name]]
    seeds = len(summary["seeds"])
    were = f"{_count(len(tuned), 'method')} {'was' if len(tuned) == 1 else 'were'} tuned"
    budget = f"with {_count(summary['trials'], 'trial')} each on validation rows"
    first = f"{were} {budget} and measured with {_count(seeds, 'seed')} on test rows"
    progress = summary.get("progress") or {}
    if progress.get("tests", 0) < progress.get("tests_in_all", 0):
        first += f"; so far {progress['tests']} of {progress['tests_in_all']} tests are made"
    if len(ranked) < 2:
        return f"{first}. Fewer than two methods have all their tests, so that there are no ranks, tests or front yet."
    best = ", ".join(f"{plain(name)} ({methods[name]['rank']:.1f})" for name in ranked[:3])
    front = [plain(name) for name in ranked if methods[name].get("pareto")]
    return " ".join(
        [
            f"{first}.",
            f"Best by mean rank of the score, of {len(ranked)} with all seeds: {best}.",
            f"On the Pareto front over {', '.join(AXES[:-1])} and {AXES[-1]}: {_some(front)}.",
            _differ(summary, ranked),
            _erased(summary, ranked),
        ]
    )


def _differ(summary: Mapping[str, Any], ranked: Sequence[str]) -> str:
    reference = plain(summary["reference"])
    tests = {name: number_in(summary["methods"][name]["score"], "p_holm") for name in ranked}
    known = {name: p for name, p in tests.items() if p is not None}
    if not known:
        return f"There is no test against {reference}, which has not all its seeds."
    found = [plain(name) for name, p in known.items() if p < FINDING]
    if least_p(len(summary["seeds"])) >= FINDING:
        return f"{len(summary['seeds'])} seeds are too few for a test of the score to tell a method from {reference}."
    who = f"{_some(found)} differ{'s' if len(found) == 1 else ''}" if found else "no method differs"
    return f"In score, {who} from {reference} (Holm-adjusted p < {FINDING:g})."


def _erased(summary: Mapping[str, Any], ranked: Sequence[str]) -> str:
    """What attacks say; without attacks, that nobody knows."""
    if (summary.get("attacks") or "none") == "none":
        return "No attack was made, so whether the facts are erased or only hidden was not tested."
    erased = [plain(name) for name in ranked if set(summary["methods"][name]["verdicts"]) == {"erased"}]
    if not erased:
        return "No method is erased with every seed: each is damaged, still answers, or gives facts back under attack."
    return f"Erased with every seed, as far as the attacks tell: {_some(erased)}."


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:FEW])
    return (f"{shown} and {len(names) - FEW} more" if len(names) > FEW else shown) or "none"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
