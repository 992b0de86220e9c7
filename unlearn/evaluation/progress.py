"""How far a measurement has come: rows that the model has read, of those that each stage has to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unlearn.evaluation.shard import place
from unlearn.models.decoder import base_of

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn


class StageBar:
    """A bar on standard error with the stage at hand and the share that is done; only where that is a terminal.

    ``stages`` maps the stages in their order to the rows of each (``Suite.stages``). ``share`` is in [0, 1] and never falls.
    """

    def __init__(self, title: str, stages: Mapping[str, int], *, wanted: bool = True, console: Console | None = None) -> None:
        """Show ``title`` before the bar; ``wanted`` false shows nothing, ``console`` takes the place of standard error."""
        from rich.console import Console as Screen
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        screen = console or Screen(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.stages, self.before, self.here, self.read = dict(stages), 0, 0, 0
        self.total = max(1, sum(stages.values()))
        self.bar = Progress(*columns, console=screen, transient=True, disable=not (wanted and screen.is_terminal))
        self.task = self.bar.add_task(title, total=self.total, note="")

    @property
    def share(self) -> float:
        """Share that is done."""
        return (self.before + min(self.here, self.read)) / self.total

    def stage(self, name: str) -> None:
        """A stage begins, and the one before it is done; a stage that is not among ``stages`` has no share."""
        self.before, self.here, self.read = self.before + self.here, self.stages.pop(name, 0), 0
        self.bar.update(self.task, completed=self.share * self.total, note=name)

    def rows(self, n: int) -> None:
        """``n`` rows more were read, by each of the processes."""
        self.read += n * place()[1]
        self.bar.update(self.task, completed=self.share * self.total)

    @contextmanager
    def watching(self, lm: nn.Module | None) -> Iterator[StageBar]:
        """Show the bar, moved by what ``lm`` reads (None: by stages alone); the hook that counts is gone afterwards."""
        embeddings: Any = None if lm is None else base_of(lm).get_input_embeddings()  # type: ignore[operator]

        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if output.shape[1] > 1:  # not the tokens that are generated one by one
                self.rows(len(output))

        handle = None if embeddings is None else embeddings.register_forward_hook(count)
        try:
            with self.bar:
                yield self
        finally:
            if handle is not None:
                handle.remove()
