"""Checks of ``unlearn doctor`` that load the model: does the SAE read where it says, and which names does the model know."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.cli.doctor import Finding

if TYPE_CHECKING:
    from unlearn.cli.pieces import Pieces
    from unlearn.config.schema import RunConfig

ROWS = 64
"""Rows of known anchors, and generic texts, on which the SAE is tried, as a run tries it."""


def hook_point(pieces: Pieces) -> Iterator[Finding]:
    """The SAE tried on the model at its layer and the neighbours, where both are there.

    Raises:
        UnlearnError: it does not belong there, or something cannot be loaded.
    """
    run = pieces.run
    if pieces.sae is None or pieces.model_place is None:
        yield Finding("ok", "hook", f"not tried: {run.data.source} builds model and SAE first, and a run tries them then")
        return
    from transformers.utils.logging import disable_progress_bar

    from unlearn.data.chat import chat_format
    from unlearn.data.module import UnlearningDataModule
    from unlearn.data.tokenize import batches
    from unlearn.launch import frozen_device, trainer_settings
    from unlearn.models.hook_check import check_hook_point
    from unlearn.models.lm import load_lm
    from unlearn.types import TokenBatch

    disable_progress_bar()
    device = frozen_device(trainer_settings(run.trainer))
    lm, tokenizer = load_lm(run.model, None if pieces.assets is None else pieces.assets.model, device)
    sae = pieces.sae.to(device)
    prompts = chat_format(pieces.source.prompt_format, tokenizer, run.model.chat)
    module = UnlearningDataModule(pieces.data, tokenizer, prompts, run.data, steps=0, seed=run.seed)
    rows = module.streams["known"][:ROWS] + module.generic[:ROWS]
    sample = [TokenBatch(*(t.to(device) for t in b)) for _, b in batches(rows, run.evaluation.batch_size, module.pad_id)]
    with _warnings() as warned:
        report = check_hook_point(lm, sae, sample, max(sae.layers), run.sae.max_fvu)
    seen = ", ".join(f"{value:.3f} at {n}" for n, value in report.fvu.items())
    text = f"block {report.layer}: variance unexplained {seen}; {report.l0[report.layer]:.1f} latents on per token"
    yield Finding("ok", "hook", text, facts={"fvu": dict(report.fvu), "l0": dict(report.l0)})
    for line in warned:
        yield Finding("warn", "hook", line, "take the SAE that was trained on this very model")
    pieces.sae.to("cpu")


class _warnings(logging.Handler):
    """Collects what the check logs as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("unlearn.models").addHandler(self)
        return self.lines

    def __exit__(self, *unused: object) -> None:
        logging.getLogger("unlearn.models").removeHandler(self)


def labels(run: RunConfig, out: Path) -> Iterator[Finding]:
    """Ask the model which names it knows (Ferrando's rule) and keep the labels.

    Raises:
        UnlearnError: nobody is to be asked, or the model cannot be loaded.
    """
    from unlearn.cli.label import bar
    from unlearn.label import label

    with bar(run.trainer.progress_bar) as shown:
        found = label(run, out, shown=shown)
    text = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    few = [name for name in ("known", "unknown") if not found.counts.get(name)]
    remedy = f"data.labels={out}" if not few else f"no name is {few[0]}: ask about more names (`unlearn label --entities FILE`)"
    yield Finding("warn" if few else "ok", "labels", f"{text}; kept in {out}", remedy, {"counts": dict(found.counts)})
