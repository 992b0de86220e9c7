"""One run in an MLflow store: found or made, filled and ended. Every call here may take long or fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.loggers.mlflow import MLFlowLogger

from unlearn.tracking.store import alone, knock, metric_name

Row = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""

KIND, INFERRED = "mlflow.experimentKind", "_inferred"
EXPERIMENT: Mapping[str, str] = {
    KIND: "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "forget/accuracy",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
    "mlflow.note.content": "Runs of unlearn. Metrics are named scope/name, as in results.json; their 95 % intervals stand under interval/. "
    "A study is the parent of its runs and holds its report.",
}
"""Tags of the experiment that MLflow's pages read."""


class StoredRun:
    """A run that is made, or gone on with, at the first call of ``reach``. Nothing is stored twice."""

    def __init__(self, uri: str, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None, timeout_s: float) -> None:
        self.uri, self.experiment, self.name, self.timeout_s = uri, experiment, name, timeout_s
        self._tags, self._continued_id = dict(tags), run_id
        self._inner: MLFlowLogger | None = None
        self._steps: dict[str, set[int]] | None = None
        self._params: set[str] = set()

    @property
    def reached(self) -> bool:
        """Whether the run is there."""
        return self._inner is not None

    @property
    def run_id(self) -> str | None:
        """Id of the run; the one given while the store has not been reached."""
        return self._inner.run_id if self._inner is not None else self._continued_id

    @property
    def client(self) -> Any:
        """MLflow's client, or an object that takes every call and does nothing while the store is away."""
        return self._inner.experiment if self._inner is not None else DummyExperiment()

    def reach(self) -> None:
        """Find the run or make it, unless that is done."""
        if self._inner is None:
            knock(self.uri, self.timeout_s)
            import mlflow  # noqa: F401  (slow, so not while others wait for the lock)

            with alone(self.uri):
                inner = self._continue() or self._begin()
                self._introduce(inner)
            self._inner = inner

    def add_params(self, params: Mapping[str, Any]) -> None:
        """Store parameters; one that has a value already keeps it."""
        named = {metric_name(key): value for key, value in params.items()}
        fresh = {key: value for key, value in named.items() if key not in self._params}
        if fresh and self._inner is not None:
            self._inner.log_hyperparams(fresh)
            self._params.update(fresh)

    def add_metrics(self, rows: Sequence[Row]) -> None:
        """Store values (at most 1,000), without the steps that a continued run has from before."""
        from mlflow.entities import Metric

        fresh = [Metric(key, value, at, step) for key, value, at, step in rows if step not in self._known_steps(key)]
        if fresh:
            self.client.log_batch(self.run_id, metrics=fresh)

    def add_file(self, file: Path, folder: str | None) -> None:
        """Keep ``file`` with the run, below ``folder``."""
        self.client.log_artifact(self.run_id, str(file), folder)

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self.reach()
        self.client.set_tag(self.run_id, key, value)

    def reopen(self) -> None:
        """Set an ended run going again."""
        self.client.update_run(self.run_id, status="RUNNING")

    def end(self, status: str) -> None:
        """End the run with MLflow's word ``status``."""
        self.client.set_terminated(self.run_id, status)

    def _known_steps(self, key: str) -> set[int]:
        """Steps of ``key`` that a continued run has from before; none for a new run."""
        if self._steps is None:
            return set()
        if key not in self._steps:
            self._steps[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}
        return self._steps[key]

    def _continue(self) -> MLFlowLogger | None:
        """The run to go on with; None where there is none, or the store does not know it."""
        if self._continued_id is None:
            return None
        from mlflow.exceptions import MlflowException

        inner = MLFlowLogger(self.experiment, tracking_uri=self.uri, run_id=self._continued_id)
        try:
            self._params = set(inner.experiment.get_run(self._continued_id).data.params)
            inner.experiment.update_run(self._continued_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._steps = {}
        return inner

    def _introduce(self, inner: MLFlowLogger) -> None:
        """Say what the experiment holds, where nobody has: MLflow's pages show training runs, or, if they guess, conversations."""
        tags = inner.experiment.get_experiment(inner.experiment_id).tags
        if tags.get(KIND, INFERRED).endswith(INFERRED):
            for key, value in EXPERIMENT.items():
                if key == KIND or key not in tags:
                    self._tag_experiment(inner, key, value)

    @staticmethod
    def _tag_experiment(inner: MLFlowLogger, key: str, value: str) -> None:
        """Set a tag of the experiment; a process that sets the same one at the same moment may make a database refuse the second."""
        from mlflow.exceptions import MlflowException

        try:
            inner.experiment.set_experiment_tag(inner.experiment_id, key, value)
        except MlflowException:
            if inner.experiment.get_experiment(inner.experiment_id).tags.get(key) != value:
                raise

    def _begin(self) -> MLFlowLogger:
        """A new run; tried again when another process has made the experiment a moment ago."""
        from mlflow.exceptions import MlflowException

        inner = MLFlowLogger(self.experiment, self.name, self.uri, dict(self._tags))
        try:
            _ = inner.experiment
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            _ = inner.experiment
        return inner
