"""Learning-rate schedules as a function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, warmup: int = 0, schedule: str = "constant") -> float:
    """Share of the peak learning rate at ``step`` (0-based), in [0, 1].

    Linear warm-up over ``warmup`` steps, then ``constant``, or ``linear`` or ``cosine`` decay that would reach zero at ``steps``.

    >>> [round(learning_rate_factor(s, 10, 2, "linear"), 3) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0
