"""Which process of a launch this is.

``fabric run``, torchrun and ``unlearn run`` on several devices go through torchelastic, srun through SLURM; each sets variables of its own.
They are read here, in the order in which Lightning looks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from unlearn.errors import RunError

if TYPE_CHECKING:
    from torch.distributed import Store


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of its launch; ranks and nodes count from 0."""

    launcher: str = ""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    nodes: int = 1

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {"launcher": self.launcher, "count": self.size, "nodes": self.nodes}

    @property
    def leads_node(self) -> bool:
        """Whether this is the first process of its node."""
        return self.local_rank == 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """What the launcher's variables say about this process.

    ``launcher`` is ``torchelastic``, ``slurm`` or ``variables`` (LOCAL_RANK set by hand, or by Lightning in the processes it starts);
    empty for a process that nobody has launched.
    """
    env = os.environ if environment is None else environment

    def number(*names: str, default: int = 0) -> int:
        return next((int(env[name]) for name in names if env.get(name)), default)

    if "TORCHELASTIC_RUN_ID" in env:
        size = number("WORLD_SIZE", default=1)
        local = number("LOCAL_WORLD_SIZE", default=size)
        return Place("torchelastic", number("RANK"), size, number("LOCAL_RANK"), local, number("GROUP_RANK"), size // local)
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        size, nodes = number("SLURM_NTASKS"), number("SLURM_NNODES", "SLURM_JOB_NUM_NODES", default=1)
        local = number("SLURM_NTASKS_PER_NODE", default=size // nodes)
        return Place("slurm", number("SLURM_PROCID"), size, number("SLURM_LOCALID"), local, number("SLURM_NODEID"), nodes)
    if "LOCAL_RANK" in env or "RANK" in env:
        local_rank, node = number("LOCAL_RANK", default=number("RANK")), number("NODE_RANK", "GROUP_RANK")
        size = number("WORLD_SIZE", default=1)
        local = number("LOCAL_WORLD_SIZE", default=size)
        rank = number("RANK", default=node * local + local_rank)
        return Place("variables", rank, size, local_rank, local, node, max(1, size // local))
    return Place(rank=number("NODE_RANK", "JSM_NAMESPACE_RANK"))


def is_rank_zero() -> bool:
    """Whether this process is the one that writes."""
    return place().rank == 0


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """While this lasts, the process measures everything itself, even where there is a process group."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_alone() -> bool:
    """Whether work may not be shared out at the moment."""
    return _ALONE.get()


@contextmanager
def said_plainly() -> Iterator[None]:
    """Connection errors of the store in one sentence."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(f"The first process must stay within reach at {address} while the run is prepared; found it gone.") from error


def connect(where: Place, limit: float) -> Store:
    """A connection to the store of the launch.

    Raises:
        RunError: not all processes came in time.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        if where.launcher == "slurm":
            from lightning.fabric.plugins.environments import SLURMEnvironment

            environment = SLURMEnvironment()
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        store, _, _ = next(rendezvous("env://", where.rank, where.size, timeout=timedelta(seconds=limit)))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(f"All {where.size} processes must come together at {address} within {limit:g} s; found: {reason}") from error
    return store
