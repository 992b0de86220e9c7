"""Micro-batches of one optimiser step that count their rows together, as if they were processes.

A mean over the tokens of a step is not the mean of its micro-batches' means, and a loss that compares rows with one another is no mean of
micro-batches at all. Only one micro-batch fits the device at a time, so what each has to say to the others (sums, counts, gathered
rows: small, and without a graph) is found beforehand, in passes without gradients; then every micro-batch is computed once more, with a
gradient for its own rows and the words of all others as constants. For means this is the usual weighting by the tokens of the whole step;
for losses over pairs of rows it is gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", arXiv 2101.06983), with nothing to be said about it by the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_CURRENT: ContextVar[Parts | None] = ContextVar("micro-batches that count together", default=None)

MOST = 5
"""Most passes before a gradient is taken."""
CLOSE = 1e-6
"""Largest relative difference between two passes at which a word counts as the same; rounding differs where kernels do."""


def parts() -> Parts | None:
    """The micro-batches that count together here; None outside of ``Parts.turn``."""
    return _CURRENT.get()


class Parts:
    """What the micro-batches of one step say to each other: call by call, in the order in which all of them call.

    Attributes:
        n: micro-batches.
        index: the one at work.
        unsettled: whether, since this was last set to False, a word was new or other than before, or one of another micro-batch missing.
    """

    def __init__(self, n: int) -> None:
        self.n, self.index, self.unsettled = n, 0, False
        self._said: list[list[Tensor]] = [[] for _ in range(n)]
        self._call = 0

    @contextmanager
    def turn(self, index: int) -> Iterator[None]:
        """Inside, micro-batch ``index`` is at work."""
        self.index, self._call = index, 0
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def exchange(self, own: Tensor, rows: bool = False) -> list[Tensor]:
        """What every micro-batch says at this call, ``own`` in its place; ``own`` stands in for one that has not said anything alike.

        Args:
            own: the word of the micro-batch at work, the same in all processes, without a graph.
            rows: whether micro-batches may have different numbers of rows to say.
        """
        call, said = self._call, self._said[self.index]
        self._call += 1
        if call == len(said):
            said.append(own)
            self.unsettled = True
        elif not _same(said[call], own):
            self.unsettled = True
        said[call] = own
        words = [other[call] if call < len(other) else None for other in self._said]
        alike = [word is not None and _shape(word, rows) == _shape(own, rows) for word in words]
        self.unsettled |= not all(alike)
        return [word if fits and word is not None else own for word, fits in zip(words, alike, strict=True)]


def _shape(word: Tensor, rows: bool) -> tuple[torch.dtype, int, torch.Size]:
    return word.dtype, word.ndim, word.shape[1:] if rows else word.shape


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=CLOSE, atol=0.0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


class Accumulation:
    """The losses of a step's micro-batches, one after the other, each with the gradient that it has in the loss of the whole step.

    How many passes the words of a loss need is found in the first step: one where they depend on the micro-batch alone (sums and counts),
    one more where they depend on what others have said (a variance about the common mean).
    """

    def __init__(self) -> None:
        self._parts = Parts(1)
        self._passes = 1

    def first(self, n: int, loss: Callable[[int], Result], agreed: Callable[[bool], bool]) -> Result:
        """Let all ``n`` micro-batches speak, and compute the first.

        Args:
            n: micro-batches of the step, > 1.
            loss: computes one of them, always with the same random numbers.
            agreed: whether something is true in any process; called equally often in all.
        """
        self._parts = step = Parts(n)
        for _ in range(self._passes):
            self._listen(loss, range(n))
        while True:
            step.unsettled = False
            result = self.next(0, loss)
            if not agreed(step.unsettled) or self._passes >= MOST:
                return result
            del result
            self._passes += 1
            self._listen(loss, range(1, n))

    def next(self, index: int, loss: Callable[[int], Result]) -> Result:
        """Micro-batch ``index``, with its graph."""
        with self._parts.turn(index):
            return loss(index)

    def _listen(self, loss: Callable[[int], Result], turns: range) -> None:
        with torch.no_grad():
            for index in turns:
                self.next(index, loss)
