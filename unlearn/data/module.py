"""The four streams as Lightning serves them, and the tokenised sets that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from unlearn.config.checks import one_of
from unlearn.config.schema import SourceConfig
from unlearn.data.checks import sets_of
from unlearn.data.sampler import Share, StepSampler
from unlearn.data.tokenize import TokenRow, collate, pad_id, text_rows, tokenize_rows
from unlearn.errors import RunError
from unlearn.types import STREAMS, EntityData, PromptFormat, Row, TokenBatch


class _Rows(Dataset[TokenRow]):
    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    def __getitems__(self, share: Share) -> tuple[list[TokenRow], int]:
        """Rows of this share, and the length of the longest row of the step: every share of it is padded to the same width."""
        return [self.rows[i] for i in share], max(len(self.rows[i].ids) for i in share.whole)

    def __len__(self) -> int:
        return len(self.rows)


def _collated(rows_width: tuple[list[TokenRow], int], pad_id: int) -> TokenBatch:
    return collate(rows_width[0], pad_id, rows_width[1])


class StepLoader(DataLoader[TokenRow]):
    """Loader of one stream. It tells Lightning that it can be resumed: its sampler already starts where the run left off."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the trainer's step says where the run is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: ``train_dataloader`` has read the restored step already."""


class UnlearningDataModule(lightning.LightningDataModule):
    """Tokenised rows of a source, and loaders over them.

    Attributes:
        streams: training rows by stream; ``evaluation`` and ``latent``: rows of the sets that are measured, by name; ``generic``: texts
            (row ids from -1 downwards).
        active_streams: the streams that ``train_dataloader`` serves, in the order of ``STREAMS``; set it to what the method consumes.
        pad_id: token id that fills a batch up.
        data, tokenizer, format: what the module was made of.

    The trainer must be given ``max_steps=steps``, ``max_epochs=-1``, ``accumulate_grad_batches=accumulate`` and
    ``use_distributed_sampler=False`` (the samplers share out the rows themselves). Training is one epoch of ``steps * accumulate``
    micro-batches; a resumed run goes on at micro-batch ``trainer.global_step * accumulate`` and sees exactly what an uninterrupted one
    would have seen, so checkpoints must be written when an optimiser step is complete.
    """

    def __init__(
        self,
        data: EntityData,
        tokenizer: Any,
        fmt: PromptFormat,
        config: SourceConfig,
        steps: int,
        seed: int,
        accumulate: int = 1,
    ) -> None:
        """Tokenise every row once.

        Raises:
            DataError: rows that cannot be tokenised as asked, see ``tokenize_rows``.
        """
        super().__init__()
        self.data, self.tokenizer, self.format = data, tokenizer, fmt
        self.config, self.steps, self.seed, self.accumulate = config, steps, seed, accumulate
        self.pad_id = pad_id(tokenizer)
        unique: dict[int, Row] = {row.row_id: row for _, _, rows in sets_of(data) for row in rows}
        tokens = {row.row_id: row for row in tokenize_rows(list(unique.values()), tokenizer, fmt, config.max_length)}

        def look_up(sets: Mapping[str, Sequence[Row]]) -> dict[str, list[TokenRow]]:
            return {name: [tokens[row.row_id] for row in rows] for name, rows in sets.items()}

        self.streams, self.evaluation, self.latent = look_up(data.streams), look_up(data.evaluation), look_up(data.latent)
        self.generic = tokenize_rows(text_rows(data.generic, first_id=-1), tokenizer, fmt, config.max_length)
        self._active: tuple[str, ...] = STREAMS

    @property
    def active_streams(self) -> tuple[str, ...]:
        """Streams that are served in training."""
        return self._active

    @active_streams.setter
    def active_streams(self, names: Sequence[str]) -> None:
        for name in names:
            one_of(name, STREAMS, "streams")
        self._active = tuple(name for name in STREAMS if name in names)

    def _place(self) -> tuple[int, int, int]:
        """Rank and world size that share the rows, and the micro-batch to start at."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, 0
        share = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if done % self.accumulate:
            raise RunError(
                f"A run must be resumed from a checkpoint that was written after a whole optimiser step; found {done} micro-batches done, "
                f"with {self.accumulate} in a step."
            )
        return share["rank"], share["num_replicas"], trainer.global_step * self.accumulate

    def _samplers(self) -> dict[str, StepSampler]:
        """A sampler for each active stream, from where the run is."""
        rank, world_size, start = self._place()
        made = {}
        for stream in self._active:
            size = getattr(self.config.batch, stream)
            made[stream] = StepSampler(len(self.streams[stream]), size, self.steps, self.seed, stream, rank, world_size, self.accumulate)
            made[stream].start = start
        return made

    def train_dataloader(self) -> CombinedLoader:
        """``{stream: TokenBatch}`` for the active streams, this rank's share of every batch.

        Raises:
            ConfigError: a stream's batch size cannot be shared out evenly over devices and micro-batches.
            RunError: the run is resumed from the middle of an optimiser step.
        """
        loaders = {}
        for stream, sampler in self._samplers().items():
            rows = _Rows(self.streams[stream])
            loaders[stream] = StepLoader(rows, batch_sampler=sampler, collate_fn=partial(_collated, pad_id=self.pad_id))
        return CombinedLoader(loaders, "max_size_cycle")

    def micro_batches(self, step: int) -> list[dict[str, TokenBatch]]:
        """Every micro-batch of optimiser step ``step``, as ``train_dataloader`` serves them; for a trainer between two steps."""
        samplers = self._samplers()
        indices = range(step * self.accumulate, (step + 1) * self.accumulate)

        def batch(stream: str, index: int) -> TokenBatch:
            rows = _Rows(self.streams[stream])
            return _collated(rows.__getitems__(samplers[stream].micro_batch(index)), self.pad_id)

        return [{stream: batch(stream, index) for stream in samplers} for index in indices]
