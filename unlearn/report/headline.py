"""The outcome of all runs of a report in two or three sentences: what is answered, what is recognised inside, what attacks get back."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn.report.names import percent
from unlearn.report.words import Verdict

MOST_NAMES = 4
"""Labels that a sentence names; of more it only tells the number."""


def headline(judged: Sequence[Verdict], noun: str = "run") -> str:
    """The outcome of all runs, or settings, together; only what withstood attacks is called erased."""
    trained = [v for v in judged if not v.reference and v.forgot]
    if not trained:
        return ""
    forgot = [v for v in trained if v.forgot == "yes"]
    sound = [v for v in forgot if not v.collapsed]
    in_part = sum(v.forgot == "in part" for v in trained)
    text = f"Of {count(len(trained), f'trained {noun}')}, {word(len(forgot))} stopped answering"
    text += f" and {word(in_part)} did so in part" if in_part else ""
    text += f", {word(len(sound))} without collapsing" if forgot and len(sound) < len(forgot) else ""
    alike = [v for v in sound if v.alike]
    sentences = [text, _recognised(sound, alike)]
    if sound and not any(v.fate.attacks for v in sound):
        sentences.append("No attack was made, so whether the facts are erased or only hidden was not tested")
    else:
        rest = [v for v in sound if not v.alike]
        sentences.append(_attacked(rest, "the others" if alike else "these"))
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _recognised(sound: Sequence[Verdict], alike: Sequence[Verdict]) -> str:
    """What the classifier test says, and of those that pass it, in the same sentence, what attacks say."""
    if not any(v.alike is not None for v in sound):
        return ""
    if not alike:
        every = "it" if len(sound) == 1 else "every one of these"
        return f"Inside the model, a classifier still tells the entities from unknown ones in {every}"
    among = "it" if len(sound) == 1 else "all of these" if len(alike) == len(sound) else f"{word(len(alike))} of these{named(alike)}"
    main = f"Inside the model, a classifier does not tell the entities from unknown ones in {among}"
    back, erased = [v for v in alike if v.fate.leaks], [v for v in alike if v.erased]
    if back:
        most = max((share, name) for v in back for name, share in v.fate.leaks.items())
        where = "" if len(back) == len(alike) else f" in {word(len(back))} of them{named(back)}"
        main += f", but facts come back under attack{where} (up to {percent(most[0])} beyond the control, by {most[1]})"
    if erased:
        where = "" if len(erased) == len(alike) else f" in {word(len(erased))}{named(erased)}"
        main += f", and {attacks(erased)} facts out{where}: erased, as far as that tells"
    untested = [v for v in alike if not v.fate.attacks]
    if untested and any(v.fate.attacks for v in sound):
        where = "" if len(untested) == len(alike) else f" in {word(len(untested))}{named(untested)}"
        main += f"; whether facts come back under attack{where} was not tested"
    return main


def _attacked(rest: Sequence[Verdict], these: str) -> str:
    """What attacks say of the rest."""
    tried = [v for v in rest if v.fate.attacks]
    if not rest:
        return ""
    if len(rest) == 1:
        these = "the other" if these == "the others" else "it"
    if not tried:
        return f"Whether facts come back in {these} was not tested"
    were = "was" if len(tried) == 1 else "were"
    of = these if len(tried) == len(rest) else f"the {word(len(tried))} of {these} that {were} attacked"
    back, erased = [v for v in tried if v.fate.leaks], [v for v in tried if v.erased]
    parts = []
    if back:
        many = "all of " if len(back) == len(tried) else f"{word(len(back))} of "
        parts.append(f"facts come back under attack in {many if len(tried) > 1 else ''}{of}")
    if erased:
        parts.append(f"{attacks(erased)} facts out in {word(len(erased))}{named(erased)}: erased, as far as that tells")
    broken = [v for v in tried if v not in back and v not in erased]
    if broken:
        which = of if len(broken) == len(tried) else word(len(broken)) + named(broken)
        parts.append(f"no attack gets facts out of {which}, but {'it is' if len(broken) == 1 else 'they are'} damaged")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def attacks(of: Sequence[Verdict]) -> str:
    """How many attacks they withstood, as the beginning of a clause."""
    least = min(v.fate.attacks for v in of)
    return "the one attack that was made gets no" if least == 1 else f"none of {word(least)} attacks gets"


def named(some: Sequence[Verdict]) -> str:
    """Labels in brackets, where they are few."""
    return f" ({', '.join(v.label for v in some)})" if len(some) <= MOST_NAMES else ""


def word(n: int) -> str:
    """A small number as a word."""
    return ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")[n] if n <= 10 else str(n)


def count(n: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "run"), count(12, "run")
    ('one run', '12 runs')
    """
    return f"{word(n)} {noun}{'' if n == 1 else 's'}"
