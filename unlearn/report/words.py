"""What a run achieved, in one sentence, and in three verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn.functional.judgement import REMEMBERED, WORDS
from unlearn.report.fate import Fate, fate
from unlearn.report.names import BASE_METHOD, GOLD_METHOD, base_of, labels_of, large, original, percent, plain
from unlearn.tracking.reader import RunRecord, read_run

FORGOTTEN = REMEMBERED
"""An accuracy at or below this counts as forgotten; the same share of the original accuracy where that is known."""
IN_PART = 0.5
"""An accuracy at or below this counts as forgotten in part."""


ROLES = {BASE_METHOD: "original model", GOLD_METHOD: "gold model"}
"""Method of a reference -> what it is."""


@dataclass(frozen=True)
class Verdict:
    """``role`` is what a reference is, else empty.

    ``forgot`` is yes, in part, no, or empty (not measured): whether questions are still answered. ``alike`` (the classifier test inside
    the model does not recognise the entities) and ``collapsed`` are None where not measured. ``fate`` is what became of the facts.
    """

    label: str
    reference: bool
    forgot: str
    alike: bool | None
    collapsed: bool | None
    sentence: str
    role: str = ""
    fate: Fate = Fate("", "", "", 0, {})

    @property
    def erased(self) -> bool:
        """Whether attacks were made and the facts withstood them with every seed, in a model that is as good as before."""
        return self.forgot == "yes" and self.fate.word == WORDS[-1]


def sentence_of(path: Path) -> str:
    """What the run in ``path`` achieved, in one sentence that says nothing of how it ended."""
    record = read_run(path)
    return verdict(replace(record, status={}), record.name).sentence


def verdicts(records: Sequence[RunRecord]) -> list[Verdict]:
    """One verdict for each run, in the given order."""
    base = base_of(records)
    return [verdict(record, label, base) for record, label in zip(records, labels_of(records), strict=True)]


def verdict(record: RunRecord, label: str, base: RunRecord | None = None) -> Verdict:
    """Judge one run; ``base`` is the run that measures the original model."""
    reference = record.method in (BASE_METHOD, GOLD_METHOD)
    forgot, alike, collapsed = "" if reference else forgotten(record, base), indistinguishable(record), _collapsed(record)
    became = fate(record, base)
    if reference:
        sentence = _sentence(
            "Not trained" if record.method == BASE_METHOD else "Trained without the entities", [_knows(record), _alike_clause(record)]
        )
    else:
        between = ", but " if alike and became.leaks else "; "
        inside = between.join(part for part in (_alike_clause(record), _facts_clause(record, forgot, became)) if part)
        rest = [inside, _cost_clause(record, base), _collapse_clause(record), _inference_clause(record)]
        sentence = _sentence(_forgot_clause(record, forgot, base), rest)
    role = ROLES.get(record.method, "")
    return Verdict(label, reference, forgot, alike, collapsed, _unfinished(record) + sentence, role, became)


def forgotten(record: RunRecord, base: RunRecord | None) -> str:
    """``yes``, ``in part``, ``no``, or empty where it was not measured; the worse of both wordings counts."""
    measured = [(record.number(key), original(record, key, base)) for key in ("forget/accuracy", "forget/accuracy_paraphrased")]
    shares = [value / before if before else value for value, before in measured if value is not None]
    if not shares:
        return ""
    worst = max(shares)
    return "yes" if worst <= FORGOTTEN else "in part" if worst <= IN_PART else "no"


def indistinguishable(record: RunRecord) -> bool | None:
    """Whether the C2ST AUC lies at or below the upper end of what two groups of unknown entities give; None without both."""
    auc, high = record.number("latent/c2st_auc"), record.number("latent/c2st_null_high")
    return None if auc is None or high is None else auc <= high


def _collapsed(record: RunRecord) -> bool | None:
    flag = record.number("collapse/flag")
    return None if flag is None else bool(flag)


def _sentence(main: str, clauses: Sequence[str]) -> str:
    text = "; ".join(part for part in (main, *clauses) if part)
    return f"{text[0].upper()}{text[1:]}." if text else "No results yet."


def _knows(record: RunRecord) -> str:
    value = record.number("forget/accuracy")
    return "" if value is None else f"it answers {percent(value)} of the questions about the entities to be forgotten"


def _forgot_clause(record: RunRecord, forgot: str, base: RunRecord | None) -> str:
    value, rephrased = record.number("forget/accuracy"), record.number("forget/accuracy_paraphrased")
    refusals, before = record.number("forget/refusal_rate"), original(record, "forget/accuracy", base)
    if not forgot:
        return ""
    main = {"yes": "Stopped answering", "in part": "Stopped answering in part", "no": "Did not forget"}[forgot]
    details = []
    if value is not None:
        details.append(
            f"{percent(value)} of the questions are still answered" + (f", {percent(before)} before" if before is not None else "")
        )
    if rephrased is not None and (value is None or abs(rephrased - value) > 0.05):
        details.append(f"{percent(rephrased)} in other words")
    if refusals is not None:
        details.append(f"{percent(refusals)} get an “unknown”")
    return f"{main} ({'; '.join(details)})" if details else main


def _alike_clause(record: RunRecord) -> str:
    auc, low, high = (record.number(f"latent/c2st_{name}") for name in ("auc", "null_low", "null_high"))
    if auc is None:
        return ""
    if low is None or high is None:
        return f"a classifier inside the model separates its entities from unknown ones with an AUC of {auc:.2f} (0.5 is chance)"
    spread = f"C2ST AUC {auc:.2f}, chance gives {low:.2f} to {high:.2f}"
    if auc > high:
        return f"inside the model a classifier still tells the entities from unknown ones ({spread})"
    if auc < low:
        return f"inside the model a classifier does not tell the entities from unknown ones, though it reads below chance ({spread})"
    return f"inside the model a classifier does not tell the entities from unknown ones ({spread})"


def _cost_clause(record: RunRecord, base: RunRecord | None) -> str:
    parts = []
    kept, had = record.number("retain/accuracy"), original(record, "retain/accuracy", base)
    if kept is not None:
        parts.append(f"it keeps {percent(kept)} of the other answers" + (f" ({percent(had)} before)" if had is not None else ""))
    unseen = record.number("retain/accuracy_unseen")
    if unseen is not None:
        parts.append(
            f"{percent(unseen)} about entities that no loss has seen" if parts else f"it keeps {percent(unseen)} of unseen answers"
        )
    perplexity, before = record.number("generic/perplexity"), original(record, "generic/perplexity", base)
    if perplexity is not None and before:
        ratio = perplexity / before
        times = f"{ratio:.3g}" if ratio < 100 else large(ratio)
        parts.append("the perplexity is unchanged" if abs(ratio - 1) < 0.005 else f"the perplexity is {times} times the original")
    return ", ".join(parts[:-1]) + f", and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _collapse_clause(record: RunRecord) -> str:
    collapsed = _collapsed(record)
    if collapsed is None:
        return ""
    reason = plain(record.results.get("collapse/reason") or "")
    return ("it collapsed" + (f": {reason}" if reason else "")) if collapsed else "it did not collapse"


def _facts_clause(record: RunRecord, forgot: str, became: Fate) -> str:
    """What attacks get out, or that nobody tried."""
    parts = [_relearn_clause(record)]
    others = [f"{name} {percent(share)}" for name, share in became.leaks.items() if name != "relearn" or not parts[0]]
    if others:
        also = "other attacks get facts out as well" if "relearn" in became.leaks and parts[0] else "attacks get facts out"
        parts.append(f"{also} ({', '.join(others)} beyond their controls)")
    elif became.attacks and not became.leaks and forgot in ("yes", "in part"):
        kinds = "the one attack that was made does not get" if became.attacks == 1 else f"none of {became.attacks} attacks gets"
        parts.append(f"{kinds} facts out beyond its control" + (": erased, as far as that tells" if became.word == WORDS[-1] else ""))
    elif not became.attacks and forgot in ("yes", "in part"):
        parts.append("whether the facts are erased or only hidden was not tested")
    return ", and ".join(part for part in parts if part)


def _relearn_clause(record: RunRecord) -> str:
    back, control, gold = (record.number(f"attack/relearn_{name}") for name in ("recovery", "control", "gold"))
    if back is None:
        return ""
    beside = [f"{percent(control)} of facts it never knew"] if control is not None else []
    beside += [f"{percent(gold)} in a model that never saw them"] if gold is not None else []
    against = f" (against {' and '.join(beside)})" if beside else ""
    return f"relearning a few other facts brings {percent(back)} of the forgotten ones back{against}"


def _inference_clause(record: RunRecord) -> str:
    return "nothing in the weights changed: it acts while the model runs" if record.manifest.get("intervention") else ""


def _unfinished(record: RunRecord) -> str:
    state, reason = str(record.status.get("state") or ""), plain(record.status.get("reason") or "")
    if state in ("finished", ""):
        return ""
    return {
        "running": "Still running, or ended without a word",
        "stopped": "Stopped early",
        "killed": "Interrupted",
        "failed": "Failed",
    }.get(state, plain(state)) + (f" ({reason.rstrip('.')}). " if reason else ". ")
