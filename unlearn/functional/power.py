"""What the recognition tests can see with so many entities: the smallest difference that they find most of the time."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import kstwobign, norm

ALPHA, POWER = 0.05, 0.8
"""Two-sided level of a test, and the share of cases in which a real difference should be found."""


def auc_error(auc: float, n: int, m: int) -> float:
    """Standard error of an area under the ROC curve (Hanley and McNeil, Radiology 1982, table and formula 2).

    Args:
        auc: the area, in [0.5, 1].
        n: entities on one side, >= 1.
        m: entities on the other, >= 1.

    >>> round(auc_error(0.5, 10, 10), 4)  # sqrt((n + m + 1) / (12 n m)), that of the rank-sum test
    0.1323
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    return math.sqrt(max(variance, 0.0))


def detectable_auc(n: int, m: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest area in (0.5, 1] that a two-sided test at ``alpha`` tells from 0.5 in a share ``power`` of cases; inf if not even 1 is.

    ``auc - 0.5 = z(1 - alpha / 2) * SE(0.5) + z(power) * SE(auc)``, with ``auc_error``.

    >>> round(detectable_auc(10, 10), 2), round(detectable_auc(100, 100), 2), detectable_auc(2, 2)
    (0.84, 0.61, inf)
    """
    if min(n, m) < 1:
        return math.inf
    reach = float(norm.ppf(1 - alpha / 2)) * auc_error(0.5, n, m)
    z = float(norm.ppf(power))

    def lacking(auc: float) -> float:
        return auc - 0.5 - reach - z * auc_error(auc, n, m)

    return float(brentq(lacking, 0.5, 1.0)) if lacking(1.0) >= 0 else math.inf


def entities_for_auc(auc: float, n: int, alpha: float = ALPHA, power: float = POWER, most: int = 100_000) -> int | None:
    """Entities that the other side needs for ``auc`` to be found with ``n`` on this one; None if no number is enough.

    >>> entities_for_auc(0.8, 10), entities_for_auc(0.8, 3)
    (21, None)
    """
    if detectable_auc(n, most, alpha, power) > auc:
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable_auc(n, middle, alpha, power) <= auc else (middle + 1, high)
    return low


def detectable_ks(n: int, m: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest distance between two distribution functions, in (0, 1], that a two-sample Kolmogorov-Smirnov test finds.

    Massey (Annals of Mathematical Statistics 1950) bounds the power from below by that of the binomial test at the place of the largest
    distance; with its normal approximation the distance is ``(k(alpha) + z(power) / 2) * sqrt((n + m) / (n m))``, k the quantile of
    Kolmogorov's distribution. It is an upper bound: most shifts of that size are found more often. inf where it exceeds 1.

    >>> round(detectable_ks(100, 100), 2), detectable_ks(3, 3)
    (0.25, inf)
    """
    if min(n, m) < 1:
        return math.inf
    found = (float(kstwobign.isf(alpha)) + float(norm.ppf(power)) / 2) * math.sqrt((n + m) / (n * m))
    return found if found <= 1 else math.inf


def smallest_p(n: int, m: int, permutations: int) -> float:
    """Smallest p-value that a permutation test over entities can give, in (0, 1].

    >>> smallest_p(2, 2, 999), smallest_p(10, 10, 199)
    (0.16666666666666666, 0.005)
    """
    return max(1 / math.comb(n + m, n), 1 / (permutations + 1))
