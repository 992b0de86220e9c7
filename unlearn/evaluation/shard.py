"""Measuring with several processes: each takes its share of the rows, all get every result.

Whether one process measures or eight, and in batches of any size, the numbers are the same up to rounding: a row's result depends on that
row alone, and what is computed from all rows (means, tests, intervals) is computed from the complete list in the original order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from unlearn.errors import RunError, UnlearnError
from unlearn.processes import is_alone
from unlearn.tracking.files import alone

Item = TypeVar("Item")
Result = TypeVar("Result")


def place() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) outside a process group, and while a process prepares a run by itself."""
    import torch.distributed as dist

    if is_alone() or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def spread(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """``work(items)``, shared out over the processes; every process must call it, and every process gets the whole list.

    Args:
        items: what to work on, the same list in every process.
        work: gives one result for each item it is handed, in order; results must survive pickling.

    Raises:
        RunError: ``work`` gives another number of results than it was given items.
    """
    rank, size = place()
    mine = list(work(items[rank::size]))
    expected = len(items[rank::size])
    if len(mine) != expected:
        raise RunError(f"A measurement must give one result for each row ({expected}); found {len(mine)}.")
    if size == 1:
        return mine
    import torch.distributed as dist

    parts: list[list[Result]] = [[] for _ in range(size)]
    dist.all_gather_object(parts, mine)
    whole: list[Result] = [parts[i % size][i // size] for i in range(len(items))]
    return whole


def kept_or_made(path: Path, read: Callable[[], Result], make: Callable[[], Result], write: Callable[[Result], None]) -> Result:
    """What ``read`` finds where ``path`` is there, else what ``make`` gives, which ``write`` keeps there.

    Launches that want it at once make it once. The processes of one launch make it together (``make`` may call ``spread``), so all of them
    must call this; the first one reads and writes.

    Raises:
        UnlearnError: what ``read`` raises, in every process.
    """
    rank, size = place()
    with alone(path) if rank == 0 else nullcontext():
        found: list[Result] = _of_first(lambda: [read()] if path.exists() else [], size)
        if not found:
            found = [make()]
            if rank == 0:
                write(found[0])
    return found[0]


def _of_first(work: Callable[[], list[Result]], size: int) -> list[Result]:
    """What ``work`` gives, or raises, in the first process, in all of them."""
    if size == 1:
        return work()
    import torch.distributed as dist

    box: list[list[Result] | UnlearnError] = [[]]
    if dist.get_rank() == 0:
        try:
            box = [work()]
        except UnlearnError as error:
            box = [error]
    dist.broadcast_object_list(box, 0)
    if isinstance(box[0], UnlearnError):
        raise box[0]
    return box[0]
