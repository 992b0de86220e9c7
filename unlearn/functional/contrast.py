"""What an attack gets out of the target, against what it gets out of entities that nobody ever knew.

Both sides are attacked with the same grid of settings ("cells"), and each side counts at its own best cell, so that searching a grid
favours neither. NumPy in, floats out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearn.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


class Contrast(NamedTuple):
    """Best cell of the target and of the control, their difference, and its 95 % bootstrap interval over entities (nan without one)."""

    target: float
    control: float
    excess: float
    low: float
    high: float
    best: int
    """index of the target's best cell, the first of equal ones"""


def cell_means(hits_CN: Array) -> Array:
    """Mean of every cell over the rows that were tested in it, shape [C]; nan where none was.

    Args:
        hits_CN: share of each row that came out right, in [0, 1], nan where a row was not tested in a cell.

    >>> cell_means(np.array([[1.0, 0.0], [np.nan, 1.0]])).tolist()
    [0.5, 1.0]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means_C: Array = np.nanmean(np.asarray(hits_CN, dtype=float), axis=1)
    return means_C


def _best(means: Array) -> Array:
    """Largest mean over cells (the last axis), nan where every one is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Array = np.nanmax(means, axis=-1)
    return found


def _sums(hits_CN: Array, groups_N: Sequence[str]) -> tuple[Array, Array]:
    """Sum and number of the tested rows of every (group, cell), both [G, C]."""
    names, index_N = np.unique(np.asarray(groups_N), return_inverse=True)
    sums_GC, counts_GC = (np.zeros((len(names), len(hits_CN))) for _ in range(2))
    np.add.at(sums_GC, index_N, np.nan_to_num(hits_CN).T)
    np.add.at(counts_GC, index_N, (~np.isnan(hits_CN)).T.astype(float))
    return sums_GC, counts_GC


def _resampled(hits_CN: Array, groups_N: Sequence[str], n: int, rng: np.random.Generator) -> Array:
    """Best cell of ``n`` samples of whole groups, drawn with replacement, shape [n]."""
    sums_GC, counts_GC = _sums(hits_CN, groups_N)
    drawn_nG = rng.multinomial(len(sums_GC), np.full(len(sums_GC), 1 / len(sums_GC)), size=n).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _best((drawn_nG @ sums_GC) / (drawn_nG @ counts_GC))


def contrast(
    target_CN: Array, target_groups_N: Sequence[str], control_CM: Array, control_groups_M: Sequence[str], *, n: int, seed: int
) -> Contrast:
    """Target against control, each at its best cell.

    The interval resamples entities on both sides (Efron and Tibshirani 1993, chapter 13) and looks for the best cell anew in every sample.

    Args:
        target_CN: hits of the target's rows in every cell, in [0, 1]; nan where a row was not tested.
        target_groups_N: entity of each row.
        control_CM: the same for unknown entities with made-up facts; the cells are the same.
        control_groups_M: entity of each row.
        n: resamples, >= 0; 0 gives no interval.
        seed: seed of the resampling.

    Raises:
        DataError: the sides have other numbers of cells, or a side was not tested at all.

    >>> contrast(np.array([[1.0, 1.0]]), ["a", "b"], np.array([[0.0, 0.5]]), ["c", "d"], n=100, seed=0)[:3]
    (1.0, 0.25, 0.75)
    """
    sides = (np.asarray(target_CN, dtype=float), list(target_groups_N)), (np.asarray(control_CM, dtype=float), list(control_groups_M))
    for name, (hits, groups) in zip(("target", "control"), sides, strict=True):
        if hits.ndim != 2 or hits.shape != (len(sides[0][0]), len(groups)) or np.isnan(hits).all():
            raise DataError(
                f"An attack's {name} must have one hit for each of {len(sides[0][0])} cells and {len(groups)} rows; found {hits.shape}."
            )
    means_C, control_C = cell_means(sides[0][0]), cell_means(sides[1][0])
    target, control = float(_best(means_C)), float(_best(control_C))
    low = high = float("nan")
    if n and min(len(set(groups)) for _, groups in sides) >= 2:
        rng = np.random.default_rng(seed)
        excess_n = _resampled(*sides[0], n, rng) - _resampled(*sides[1], n, rng)
        low, high = (float(v) for v in np.nanquantile(excess_n, (0.025, 0.975)))
    return Contrast(target, control, target - control, low, high, int(np.nanargmax(means_C)))
