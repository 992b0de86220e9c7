"""Does a run fit, and how long does it take? Estimated from the shapes of its model, its rows and its method."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.cli.doctor import Finding
from unlearn.errors import UnlearnError
from unlearn.launch import trainer_settings, wanted

if TYPE_CHECKING:
    from unlearn.cli.pieces import Pieces
    from unlearn.config.schema import RunConfig
    from unlearn.estimate.memory import Estimate

TIGHT = 0.9
"""Share of a device's memory above which a run may fail after all: the allocator's gaps, other programs."""
GB = 10**9


def world_size(run: RunConfig) -> int:
    """Devices of a run over all nodes, as the configuration and this machine have them."""
    settings = trainer_settings(run.trainer)
    return wanted(settings) * int(settings["num_nodes"])


def shares(run: RunConfig, streams: Sequence[str], devices: int | None = None) -> Iterator[Finding]:
    """Whether every batch can be shared out over devices and micro-batches."""
    parts = (devices or world_size(run)) * run.trainer.accumulate
    for stream in streams:
        rows = getattr(run.data.batch, stream)
        if rows % parts:
            nearest = parts * max(1, round(rows / parts))
            text = f"data.batch.{stream} must be a multiple of devices x trainer.accumulate ({parts}); found {rows}."
            yield Finding("fail", "batch", text, f"data.batch.{stream}={nearest}")
    per = ", ".join(f"{stream} {getattr(run.data.batch, stream) // parts}" for stream in streams)
    yield Finding("ok", "batch", f"rows of one pass on one device: {per}" if streams else "no training steps")


def forecast(pieces: Pieces, gpu_memory: float | None = None, devices: int | None = None) -> Iterator[Finding]:
    """Memory of every device and of the host, and the time of a step on this machine.

    Args:
        pieces: the run.
        gpu_memory: GB of memory of a GPU that is not here; None looks at this machine.
        devices: number of them.
    """
    import torch

    run = pieces.run
    if pieces.shape() is None:
        brought = run.model.path is None
        text = f"{run.data.source} builds its model (a small one) first" if brought else "the model cannot be read (see above)"
        yield Finding("ok" if brought else "warn", "memory", f"not estimated: {text}")
        return
    settings = trainer_settings(run.trainer)
    here = settings["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    on_gpu = here or gpu_memory is not None
    found = _estimate(pieces, run, on_gpu, devices)
    room = _room(here, gpu_memory)
    yield _memory(pieces, found, room, on_gpu, devices)
    if run.optim.steps and pieces.method.streams_of(run.method) and (here or gpu_memory is None):
        yield _time(run, found, here)
    if not on_gpu:
        return
    from unlearn.estimate.memory import gib

    free = _available()
    text = f"main memory of one process while the model is loaded: {gib(found.host)}; {gib(free)} available here"
    if here and found.host > free:
        yield Finding("fail", "host", text, "close other programs, or load on a machine with more memory")
    else:
        yield Finding("ok", "host", text, facts={"host_bytes": found.host})


def _time(run: RunConfig, found: Estimate, on_gpu: bool) -> Finding:
    """Time of a step from rates that are measured here, now."""
    from unlearn.estimate.speed import Rates, step_seconds

    dtype = "bfloat16" if run.trainer.precision == "bf16-mixed" else run.model.dtype
    rates = Rates.measure("cuda" if on_gpu else "cpu", dtype)
    seconds = step_seconds(found.rehearsal, rates)
    text = (
        f"{_span(seconds)} a step, {_span(seconds * run.optim.steps)} for {run.optim.steps} steps (measurements not counted), at "
        f"{rates.flops / 1e12:.2g} TFLOP/s and {rates.bytes / 1e9:.3g} GB/s as measured on this {'GPU' if on_gpu else 'CPU'}"
    )
    facts = {"step_seconds": seconds, "flops_per_second": rates.flops, "bytes_per_second": rates.bytes}
    return Finding("ok", "time", text, facts=facts)


def _span(seconds: float) -> str:
    """A time in words.

    >>> _span(0.25), _span(90), _span(9000)
    ('0.25 s', '1.5 min', '2.5 h')
    """
    unit, name = next((u for u in ((3600, "h"), (60, "min")) if seconds >= u[0]), (1, "s"))
    return f"{seconds / unit:.2g} {name}"


def _estimate(pieces: Pieces, run: RunConfig, on_gpu: bool, devices: int | None) -> Estimate:
    """The estimate with the run's own rows where they are there, else with made-up ones."""
    from unlearn.estimate.memory import estimate
    from unlearn.estimate.stand_in import Size

    data, reader = None, None
    with suppress(UnlearnError):  # reported by the check of the data
        data, reader = pieces.data, pieces.reader
    world = devices or world_size(run)
    size = Size(rows=1)
    return estimate(run, pieces.shape(), sae=pieces.blank_sae(), world=world, on_gpu=on_gpu, data=data, reader=reader, size=size)


def _room(here: bool, gpu_memory: float | None) -> int:
    """Bytes that there are for one device's share."""
    if gpu_memory is not None:
        return int(gpu_memory * GB)
    if here:
        import torch

        return min(int(torch.cuda.get_device_properties(i).total_memory) for i in range(torch.cuda.device_count()))
    return _available()


def _available() -> int:
    """Bytes of main memory that a new process can have."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory(pieces: Pieces, found: Estimate, room: int, on_gpu: bool, devices: int | None) -> Finding:
    from unlearn.estimate.memory import gib

    what = f"{'one GPU' if on_gpu else 'CPU'}{f' of {found.world}' if found.world > 1 else ''}"
    parts = ", ".join(f"{kind} {gib(size)}" for kind, size in found.device.items() if size >= 2**20)
    text = f"{what}: {gib(found.peak)} of {gib(room)} at the peak ({parts}); an evaluation batch {gib(found.measuring)}"
    facts = {"peak_bytes": found.peak, "room_bytes": room, "parts": dict(found.device), "measuring_bytes": found.measuring}
    if found.peak <= TIGHT * room:
        return Finding("ok", "memory", text, facts=facts)
    status = "fail" if found.peak > room else "warn"
    return Finding(status, "memory", text, _remedy(pieces, room, on_gpu, devices), facts)


def _smaller(run: RunConfig, found: Estimate) -> Iterator[tuple[str, RunConfig]]:
    """Changes that save memory, the one that changes least first; each on top of those before."""
    words: list[str] = []

    def step(word: str, changed: RunConfig) -> tuple[str, RunConfig]:
        words.append(word)
        return " ".join(words), changed

    if found.measuring > sum(found.device.values()) and run.evaluation.batch_size > 8:
        run = replace(run, evaluation=replace(run.evaluation, batch_size=8))
        yield step("evaluation.batch_size=8", run)
    if not run.model.gradient_checkpointing:
        run = replace(run, model=replace(run.model, gradient_checkpointing=True))
        yield step("model.gradient_checkpointing=true", run)
    smallest = min(found.rows.values())
    if smallest % 4 == 0:
        run = replace(run, trainer=replace(run.trainer, accumulate=run.trainer.accumulate * 4))
        yield step(f"trainer.accumulate={run.trainer.accumulate}", run)
    if run.model.dtype == "float32":
        run = replace(run, model=replace(run.model, dtype="bfloat16"))
        yield step("model.dtype=bfloat16", run)
    if run.model.trainable.mode != "lora":
        run = replace(run, model=replace(run.model, trainable=replace(run.model.trainable, mode="lora")))
        yield step("model.trainable.mode=lora", run)
    if found.world > 1 and run.trainer.strategy != "fsdp2":
        run = replace(run, trainer=replace(run.trainer, strategy="fsdp2"))
        yield step("trainer.strategy=fsdp2", run)


def _remedy(pieces: Pieces, room: int, on_gpu: bool, devices: int | None) -> str:
    """The first of some changes with which the run would fit."""
    from unlearn.estimate.memory import gib

    first = _estimate(pieces, pieces.run, on_gpu, devices)
    for words, run in _smaller(pieces.run, first):
        found = _estimate(pieces, run, on_gpu, devices)
        if found.peak <= TIGHT * room:
            return f"{words} ({gib(found.peak)})"
    return "take a smaller model, shorter rows (data.max_length), more devices with trainer.strategy=fsdp2, or a larger device"
