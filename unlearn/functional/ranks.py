"""Means, ratios and samples over the rows of every process, so that a loss on two devices is the loss on one.

A process of a distributed run holds its share of a batch. A mean of the shares' means is not the mean of the batch where shares have
different numbers of tokens, and what compares rows with one another (a kernel distance, a pairwise term) is no mean of shares at all.
Inside ``across_ranks`` the functions of this file count the rows of all processes; outside, and in a run of one process, they are plain
means of what they are given. Every process must call them in the same order, with whatever rows it has, none included.

Gradients: what is computed is the same number in every process, and each process differentiates it by its own rows only. That gradient is
multiplied by the number of processes, because distributed strategies average gradients; their average is then that of one process.

The micro-batches of a step that is accumulated count together in the same way (``unlearn.functional.parts``): a share is then what one
process holds of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unlearn.functional.parts import parts
from unlearn.functional.tokens import upcast

_TOGETHER: ContextVar[bool] = ContextVar("rows of all processes count", default=False)


@contextmanager
def across_ranks() -> Iterator[None]:
    """Inside, the rows of every process of the default process group count; nothing changes where there is one process."""
    token = _TOGETHER.set(True)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def n_ranks() -> int:
    """Number of processes whose rows count: 1 outside ``across_ranks`` or without a process group."""
    if not _TOGETHER.get() or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def n_shares() -> int:
    """Shares of a batch whose rows count: processes times micro-batches; 1 outside ``across_ranks``."""
    step = parts() if _TOGETHER.get() else None
    return n_ranks() * (step.n if step is not None else 1)


def _of_all(own: Tensor, rows: bool = False) -> list[Tensor]:
    """``own``, the same in all processes, of every micro-batch of the step; ``rows``: their numbers of rows may differ."""
    step = parts() if _TOGETHER.get() else None
    return [own] if step is None else step.exchange(own, rows)


class _FromAllRanks(torch.autograd.Function):
    """Hands on ``whole``; its gradient at ``own_N`` (everywhere for None) goes to ``own``, times the number of shares."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: Tensor, own_N: Tensor | None, size: int) -> Tensor:
        ctx.own_N, ctx.size = own_N, size
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return (grad if ctx.own_N is None else grad[ctx.own_N]) * ctx.size, None, None, None


def _sums(values: Tensor, size: int) -> Tensor:
    """Elementwise sum over the shares, ``size`` of them, float64, differentiable."""
    own = values.double()
    whole = own.detach().clone()
    if n_ranks() > 1:
        dist.all_reduce(whole)
    whole = torch.stack(_of_all(whole)).sum(0)
    found: Tensor = _FromAllRanks.apply(own, whole, None, size)
    return found


def ratio(numerator: Tensor, count: Tensor) -> Tensor:
    """Sum of the numerators over the sum of the counts, a scalar, float32 at least; 0 where nothing is counted.

    >>> ratio(torch.tensor(6.0), torch.tensor(4)), ratio(torch.tensor(0.0), torch.tensor(0))
    (tensor(1.5000), tensor(0.))

    Args:
        numerator: sum over the rows of this process, a scalar.
        count: how many it sums over, a scalar >= 0, without a gradient.
    """
    numerator, size = upcast(numerator), n_shares()
    if size == 1:
        return numerator / count.clamp(min=1)
    whole = _sums(torch.stack([numerator.double(), count.double()]), size)
    return (whole[0] / whole[1].clamp(min=1)).to(numerator.dtype)


def mean(x: Tensor) -> Tensor:
    """Mean over all elements of ``x`` in every process, a scalar, float32 at least; 0 (with its graph) where there is none.

    >>> mean(torch.tensor([1.0, 2.0, 6.0])), mean(torch.zeros(0))
    (tensor(3.), tensor(0.))
    """
    x = upcast(x)
    if n_shares() == 1 and x.numel():
        return x.mean()
    return ratio(x.sum(), torch.tensor(x.numel(), device=x.device))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask``, a scalar, float32 at least; 0 (with its graph) where the mask is empty everywhere.

    >>> masked_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]))
    tensor(3.5000)
    """
    return ratio((upcast(x) * mask).sum(), mask.sum())


def variance(x_ND: Tensor) -> Tensor:
    """Unbiased variance of each column over all rows [D], without a gradient; nan where there are fewer than two.

    >>> variance(torch.tensor([[1.0], [3.0]]))
    tensor([2.])
    """
    x_ND, size = upcast(x_ND.detach()), n_shares()
    if size == 1:
        return x_ND.var(0) if len(x_ND) > 1 else x_ND.new_full(x_ND.shape[1:], torch.nan)
    n = _sums(x_ND.new_tensor([len(x_ND)]), size)
    centred_ND = x_ND.double() - _sums(x_ND.double().sum(0), size) / n
    return (_sums(centred_ND.square().sum(0), size) / (n - 1)).to(x_ND.dtype)


def largest(n: int, device: torch.device) -> int:
    """The largest ``n`` of any share; ``device`` is where the processes exchange it."""
    if n_shares() == 1:
        return n
    found = torch.tensor(n, device=device)
    if n_ranks() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(torch.stack(_of_all(found)).max())


def averaged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean over the processes of each scalar, without a gradient; every process must have the same names in the same order.

    >>> averaged({"loss": torch.tensor(2.0, requires_grad=True)})
    {'loss': tensor(2.)}
    """
    found, size = {name: value.detach() for name, value in values.items()}, n_ranks()
    if size == 1:
        return found
    whole_N = _sums(torch.stack([value.double().reshape(()) for value in found.values()]), size) / size
    return {name: value.to(found[name].dtype) for name, value in zip(found, whole_N, strict=True)}


def own_share(n: int) -> range:
    """Places, among ``n`` rows that every process knows, of those that are this share's: as ``SharedRows`` has them, every A-th from
    micro-batch m on, and of these every W-th from the process's rank on.

    >>> list(own_share(3))
    [0, 1, 2]
    """
    size, step = n_ranks(), parts() if _TOGETHER.get() else None
    rank = dist.get_rank() if size > 1 else 0
    return range(rank, n, size) if step is None else range(rank * step.n + step.index, n, size * step.n)


class SharedRows:
    """Rows of all shares, laid out as one process would have them, for losses that compare rows with each other.

    Micro-batch m of A holds every A-th row of a step from m on, and process r of W every W-th of these from r on
    (``unlearn.data.sampler``), so its row i is row ``(i W + r) A + m`` of the step. Rows that are left out leave no gap.

    Attributes:
        own_N: places, among all rows, of those of this share.
    """

    def __init__(self, place_N: Tensor) -> None:
        """Agree on the layout.

        Args:
            place_N: places in this share of the rows that take part, ascending; may be empty.
        """
        self.size, self.ranks = n_shares(), n_ranks()
        self.own_N = torch.arange(len(place_N), device=place_N.device)
        if self.size == 1:
            return
        rank, self.counts = self._counted(place_N)
        step = parts()
        index, n = (step.index, step.n) if step is not None else (0, 1)
        keys = _of_all(torch.cat(self._of_ranks((place_N * self.ranks + rank) * n + index)), rows=True)
        self.lengths = [len(key) for key in keys]
        self.order_M = torch.cat(keys).argsort(stable=True)
        first = sum(self.lengths[:index]) + sum(self.counts[:rank])
        self.own_N = self.order_M.argsort()[first : first + len(place_N)]

    def _counted(self, place_N: Tensor) -> tuple[int, list[int]]:
        """This process, and the number of rows of each."""
        if self.ranks == 1:
            return 0, [len(place_N)]
        counts = [torch.zeros_like(self.own_N[:1].sum()) for _ in range(self.ranks)]
        dist.all_gather(counts, torch.tensor(len(place_N), device=place_N.device))
        return dist.get_rank(), [int(n) for n in counts]

    def _of_ranks(self, x_N: Tensor) -> list[Tensor]:
        """Rows of each process; shorter shares travel padded."""
        if self.ranks == 1 or not any(self.counts):
            return [x_N]
        padded = x_N.new_zeros(max(self.counts), *x_N.shape[1:])
        padded[: len(x_N)] = x_N
        found = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(found, padded)
        return [part[:n] for part, n in zip(found, self.counts, strict=True)]

    def all(self, x_N: Tensor) -> Tensor:
        """The rows of every share, [M, ...]; differentiable by this one's."""
        if self.size == 1:
            return x_N
        said = _of_all(torch.cat(self._of_ranks(x_N.detach())), rows=True)
        # micro-batches that have yet to find their place in the exchange: rows without meaning, in the right number
        fitting = [word if len(word) == n else word.new_zeros(n, *word.shape[1:]) for word, n in zip(said, self.lengths, strict=True)]
        whole = torch.cat(fitting)[self.order_M]
        found: Tensor = _FromAllRanks.apply(x_N, whole, self.own_N, self.size) if x_N.requires_grad else whole
        return found
