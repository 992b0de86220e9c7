"""Which rows of a stream an optimiser step sees: a pure function of (seed, stream, step), whatever the number of devices."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from unlearn.config.checks import check


class Share(list[int]):
    """Rows of one process's micro-batch.

    Attributes:
        whole: rows of the optimiser step over all processes and micro-batches, in order. All of its shares are padded to the same width:
            losses that count padded positions would differ otherwise.
    """

    def __init__(self, whole: list[int], first: int, shares: int) -> None:
        """Take every ``shares``-th row of ``whole`` from ``first`` on."""
        super().__init__(whole[first::shares])
        self.whole = whole


class StepSampler(Sampler[list[int]]):
    """Batch sampler over a fixed number of optimiser steps.

    The rows are laid out as one permutation after another, and global batch ``k`` is the ``k``-th stretch of ``batch_size`` rows: the
    whole stream is visited before a row comes again. Micro-batch ``m`` of ``accumulate`` takes every ``accumulate``-th of its rows from
    ``m`` on, and of these rank ``r`` every ``world_size``-th from ``r`` on. The loss of a step is that of all its rows, whatever the
    number of ranks (``unlearn.functional.ranks``) and of micro-batches (``unlearn.functional.parts``).

    Set ``start`` to the number of micro-batches already done, and iteration goes on from there; the length stays the total, which is
    how Lightning counts a resumed epoch.

    >>> list(StepSampler(4, 2, 2, seed=0, stream="forget"))
    [[0, 1], [3, 2]]
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        steps: int,
        seed: int,
        stream: str,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        """Keep the numbers; nothing is drawn yet.

        Args:
            n_rows: rows of the stream, >= 1.
            batch_size: rows of one optimiser step over all devices, a multiple of ``world_size * accumulate``.
            steps: optimiser steps, >= 0.
            seed: seed of the run.
            stream: name of the stream; streams of one run draw independently.
            rank: this process, in [0, world_size).
            world_size: number of processes that share the batch, >= 1.
            accumulate: micro-batches of one optimiser step, >= 1.

        Raises:
            ConfigError: ``batch_size`` cannot be shared out evenly, or the stream is empty.
        """
        shares = world_size * accumulate
        check(n_rows >= 1, f"data stream {stream}", "of at least one row", n_rows)
        expected = f"a positive multiple of devices x trainer.accumulate ({world_size} x {accumulate})"
        check(batch_size >= 1 and batch_size % shares == 0, f"data.batch.{stream}", expected, batch_size)
        self.n_rows, self.batch_size, self.steps = n_rows, batch_size, steps
        self.seed, self.stream = seed, stream
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.start = 0
        self._drawn: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        """Order of the rows in pass ``epoch``; the passes that one batch can touch are kept."""
        if epoch not in self._drawn:
            self._drawn = {e: p for e, p in self._drawn.items() if e == epoch - 1}
            words = (self.seed, zlib.crc32(self.stream.encode()), epoch)
            self._drawn[epoch] = np.random.default_rng(np.random.SeedSequence(words)).permutation(self.n_rows)
        return self._drawn[epoch]

    def global_batch(self, step: int) -> list[int]:
        """Rows of optimiser step ``step`` (0-based) over all ranks, in order."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._permutation(place // self.n_rows)[place % self.n_rows]) for place in places]

    def micro_batch(self, index: int) -> Share:
        """This rank's rows of micro-batch ``index`` (0-based, counted over the whole run)."""
        step, part = divmod(index, self.accumulate)
        return Share(self.global_batch(step), self.rank * self.accumulate + part, self.world_size * self.accumulate)

    def __iter__(self) -> Iterator[Share]:
        for index in range(self.start, len(self)):
            yield self.micro_batch(index)

    def __len__(self) -> int:
        return self.steps * self.accumulate
