"""Do what is missing of a comparison, method by method, in one process or several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from unlearn.assembly import cache_folder
from unlearn.comparison.conclude import conclude
from unlearn.comparison.ledger import SUMMARY, Ledger
from unlearn.comparison.measure import measure
from unlearn.comparison.plan import Plan
from unlearn.comparison.tune import tune
from unlearn.config.schema import RunConfig
from unlearn.data.checks import check_streams
from unlearn.data.sources.base import Source
from unlearn.errors import UnlearnError
from unlearn.registry import find

Told = Callable[[str], None]
"""Called with a sentence about what has been done."""
Failures = dict[str, str]
"""What failed, and why."""


def compare(plan: Plan, jobs: int = 1, told: Told = lambda text: None) -> tuple[dict[str, Any], Failures]:
    """Tune and measure what is not in the ledger yet, then conclude; a method that fails does not stop the others.

    Args:
        plan: the comparison.
        jobs: methods that are worked on at the same time, each in a process of its own.
        told: what to do with news.

    Returns:
        The summary, as in ``summary.json``, and what failed.

    Raises:
        RunError: the ledger holds results of another comparison.
        DataError: the source has too few rows to tune on; nothing was made.
    """
    ledger = Ledger(plan.ledger)
    ledger.open(plan)
    tune_these, test_these = ledger.missing(plan)
    if tune_these:
        check_rows(plan.validation(tune_these[0]))
    methods = [m for m in plan.methods if m in tune_these or m in {name for name, _ in test_these}]
    told(f"{len(tune_these)} methods to tune, {len(test_these)} tests to make; the rest is in {plan.ledger}")
    failures: Failures = {}
    if jobs == 1 or len(methods) < 2:
        for method in methods:
            failures |= one_method(plan, method, told)
    else:
        failures = _side_by_side(plan, methods, jobs, told)
    summary = conclude(plan)
    ledger.write(ledger.folder / SUMMARY, summary)
    return summary, failures


def check_rows(config: RunConfig) -> None:
    """Refuse a source that cannot serve the rows of ``config``, before anything is made of it.

    Raises:
        DataError: it cannot.
    """
    source: Source = find("source", config.data.source, "data.source").load()(config.data, seed=config.seed, cache=cache_folder(config))
    check_streams(source.serve())


def one_method(plan: Plan, method: str, told: Told = lambda text: None) -> Failures:
    """Tune a method and measure it with every seed; a seed that fails does not stop the others. Returns what failed."""
    failures: Failures = {}
    try:
        params = tune(plan, method) if plan.tuned(method) else {}
    except Exception as error:
        return {f"{method}, tuning": sentence(error)}
    if plan.tuned(method):
        told(f"{method}: tuned, score {Ledger(plan.ledger).tuning(method)['best']['score']:.3f} with {shown(params)}")
    for seed in plan.seeds:
        try:
            measure(plan, method, seed, params)
        except Exception as error:
            failures[f"{method}, seed {seed}"] = sentence(error)
            continue
        told(f"{method}, seed {seed}: measured, score {Ledger(plan.ledger).test(method, seed)['score']:.3f}")
    return failures


def sentence(error: BaseException) -> str:
    """What went wrong, in words."""
    return str(error) if isinstance(error, UnlearnError) else f"{type(error).__name__}: {error}"


def shown(params: Any) -> str:
    """A setting in one line."""
    text = ", ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items())
    return text or "nothing turned"


def _side_by_side(plan: Plan, methods: list[str], jobs: int, told: Told) -> Failures:
    """The same in processes that start afresh (forked ones would share torch's threads)."""
    failures: Failures = {}
    with ProcessPoolExecutor(min(jobs, len(methods)), mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(one_method, plan, method): method for method in methods}
        for done in as_completed(waiting):
            method = waiting[done]
            try:
                found = done.result()
            except Exception as error:  # the process itself has died
                found = {method: sentence(error)}
            failures |= found
            told(f"{method}: {'failed' if found else 'done'}")
    return failures
