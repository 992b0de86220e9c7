"""Figures of a study, drawn by Optuna, as PNG and SVG."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from unlearn.sweep.outcome import SweepOutcome

FORMATS = ("png", "svg")
log = logging.getLogger(__name__)


def draw(study: optuna.Study, outcome: SweepOutcome) -> list[Path]:
    """Write the history and the importances of every objective, the Pareto front of two or three, and the courses of pruned studies.

    Figures that the trials do not allow (fewer than two values, for example) are left out.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < 2:
        return []
    from optuna.visualization import matplotlib as drawn

    made: list[Path] = []
    folder = outcome.folder / "plots"
    for i, title in enumerate(outcome.objectives):
        target: dict[str, Any] = {"target_name": title}
        if len(outcome.objectives) > 1:
            target["target"] = lambda trial, i=i: trial.values[i]
        end = f"_{i + 1}" if len(outcome.objectives) > 1 else ""
        made += _keep(folder / f"history{end}", lambda t=target: drawn.plot_optimization_history(study, **t))  # type: ignore[misc]
        made += _keep(folder / f"importances{end}", lambda t=target: drawn.plot_param_importances(study, **t))  # type: ignore[misc]
    if len(outcome.objectives) in (2, 3):
        made += _keep(folder / "pareto", lambda: drawn.plot_pareto_front(study, target_names=list(outcome.objectives)))
    if any(trial.intermediate_values for trial in finished):
        made += _keep(folder / "courses", lambda: drawn.plot_intermediate_values(study))
    return made


def _keep(path: Path, plot: Callable[[], Any]) -> list[Path]:
    """Draw one figure and write it in every format; nothing where it cannot be drawn."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    path.parent.mkdir(parents=True, exist_ok=True)
    with _plain(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            axes = plot()
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            log.info("%s cannot be drawn: %s", path.name, error)
            return []
        figure = axes.figure
        if path.name.startswith("history"):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.set_size_inches(8, 5)
        files = [path.with_suffix(f".{kind}") for kind in FORMATS]
        for file in files:
            figure.savefig(file, dpi=150, bbox_inches="tight")
        plt.close(figure)
    return files


@contextmanager
def _plain() -> Iterator[None]:
    """Optuna sets a style for the whole process; it is put back."""
    import matplotlib as mpl

    with mpl.rc_context():
        yield
