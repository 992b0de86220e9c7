"""One number for tuning, and five for comparing: results in, floats out.

Tuning and comparison must want the same things of every method. ``parts`` reads six shares in [0, 1] off a run's results, 1 being what
the model that never saw the target would show; ``tuning_score`` makes them one number; ``axes`` makes them the sides of a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unlearn.functional.judgement import FLUENCY, KEPT, attack_excesses

AXES = ("forgetting", "retention", "indistinguishability", "robustness", "cost")
"""Sides of a comparison; more is better but for ``cost``, which counts CPU seconds of training."""
LOWER_IS_BETTER = ("cost",)


def parts(results: Mapping[str, float]) -> dict[str, float]:
    """Shares in [0, 1], 1 is best; nan where it was not measured.

    - ``forgetting``, ``other_words``: 1 - accuracy on the targets, on trained and on held-out wordings.
    - ``retention``, ``unseen``: accuracy on entities in the losses, and in none, as a share of the original model's.
    - ``fluency``: the original model's perplexity on text about nobody over the model's, 1 where the model's is lower.
    - ``indistinguishability``: 1 - max(0, 2 AUC - 1) of the classifier two-sample test between targets and unknown entities; 1 at chance.

    >>> found = parts({"forget/accuracy": 0.25, "retain/accuracy": 0.5, "retain/accuracy_base": 1.0, "latent/c2st_auc": 0.75})
    >>> found["forgetting"], found["retention"], found["indistinguishability"], found["fluency"]
    (0.75, 0.5, 0.5, nan)
    """

    def get(key: str) -> float:
        value = results.get(key)
        return float(value) if isinstance(value, int | float) else math.nan

    def share(value: float, of: float) -> float:
        if value != value or of != of:
            return math.nan
        return min(1.0, max(0.0, value / of)) if 0 < of < math.inf else float(of == 0)

    auc = get("latent/c2st_auc")
    return {
        "forgetting": 1.0 - get("forget/accuracy"),
        "other_words": 1.0 - get("forget/accuracy_paraphrased"),
        "retention": share(get("retain/accuracy"), get("retain/accuracy_base")),
        "unseen": share(get("retain/accuracy_unseen"), get("retain/accuracy_unseen_base")),
        "fluency": share(get("generic/perplexity_base"), get("generic/perplexity")),
        "indistinguishability": math.nan if auc != auc else 1.0 - max(0.0, 2.0 * auc - 1.0),
    }


def harm(results: Mapping[str, float]) -> float:
    """How far a model is below what counts as undamaged (``unlearn.functional.judgement``): 0 for an undamaged one, at most 1.

    The largest relative shortfall of retention and unseen below ``KEPT`` and of fluency below ``1 / FLUENCY``; 1 for a collapsed model.
    """
    found = parts(results)
    least = {"retention": KEPT, "unseen": KEPT, "fluency": 1 / FLUENCY}
    short = [1 - found[name] / bound for name, bound in least.items() if found[name] == found[name]]
    return 1.0 if results.get("collapse/flag") else max(0.0, *short, 0.0)


def tuning_score(results: Mapping[str, float]) -> float:
    """What tuning maximises, in [-1, 1].

    Constraints come first: a damaged model (``harm`` > 0) scores ``-harm``, below every undamaged one. An undamaged model scores the
    harmonic mean of its six ``parts``, so that the worst of them weighs most and no strength makes up for a zero. Parts that were not
    measured are left out. Attacks are not in it: they cost many times a run, and are kept for the test.

    >>> whole = {"forget/accuracy": 0.0, "retain/accuracy": 1.0, "retain/accuracy_base": 1.0}
    >>> tuning_score(whole), tuning_score({**whole, "forget/accuracy": 1.0}), round(tuning_score({**whole, "retain/accuracy": 0.45}), 3)
    (1.0, 0.0, -0.5)
    """
    damage = harm(results)
    if damage > 0:
        return -damage
    return harmonic_mean([value for value in parts(results).values() if value == value])


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of numbers >= 0; 0 where one of them is 0, nan of none.

    >>> harmonic_mean([1.0, 0.5]), harmonic_mean([1.0, 0.0])
    (0.6666666666666666, 0.0)
    """
    if not values:
        return math.nan
    return 0.0 if min(values) <= 0 else len(values) / math.fsum(1 / value for value in values)


def axes(results: Mapping[str, float]) -> dict[str, float]:
    """The five sides of a comparison, see ``AXES``; nan where it was not measured.

    ``forgetting`` is the worse of both wordings, ``retention`` the worst of retention, unseen and fluency. ``robustness`` is 1 minus the
    most that any attack gets out beyond its control and beyond what it gets out of the gold model; nan without attacks. ``cost`` is CPU
    seconds of training, 0 for a method that takes no steps.

    >>> axes({"forget/accuracy": 0.0, "forget/accuracy_paraphrased": 0.2, "attack/relearn_excess": 0.7})["forgetting"]
    0.8
    """
    found = parts(results)
    excesses = [value for value, _ in attack_excesses(results).values()]
    cost = results.get("cost/train_cpu_seconds", 0.0)
    return {
        "forgetting": worst(found["forgetting"], found["other_words"]),
        "retention": worst(found["retention"], found["unseen"], found["fluency"]),
        "indistinguishability": found["indistinguishability"],
        "robustness": 1.0 - min(1.0, max(0.0, *excesses, 0.0)) if excesses else math.nan,
        "cost": float(cost) if isinstance(cost, int | float) else math.nan,
    }


def worst(*values: float) -> float:
    """The least of those that are numbers; nan of none."""
    return min((value for value in values if value == value), default=math.nan)
