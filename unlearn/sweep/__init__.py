"""Studies over the configurations of runs, with Optuna: the search is YAML, every trial an ordinary run, workers come and go.

The lifecycle, with the place of every part::

    run_sweep(spec)
        open_storage; create or load the study                  storage
        parent_run: the study's MLflow run                      parent
        until every slot has its trial:
            plan: queue what is missing or was lost             slots
            Objective: choose, run, attack, read results        samplers, trial
        outcome; sweep.json, figures, the parent's artifacts    outcome, figures, parent
"""

from unlearn.config.sweep import SweepSpec, load_sweep
from unlearn.sweep.engine import run_sweep
from unlearn.sweep.outcome import SweepOutcome, TrialRecord

__all__ = ["SweepOutcome", "SweepSpec", "TrialRecord", "load_sweep", "run_sweep"]
