"""The data module through a real Trainer: what is served, on how many ranks, and after a restart in the middle."""

from __future__ import annotations

import logging
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.entity_data import entity_data, rows
from tests.data.tokenizers_zoo import byte_level
from unlearn.config.schema import BatchConfig, SourceConfig
from unlearn.data.module import UnlearningDataModule
from unlearn.errors import ConfigError, DataError, RunError
from unlearn.types import STREAMS, PromptFormat, TokenBatch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
BATCH = BatchConfig(forget=2, retain=4, known=4, unknown=6)


def module(steps=6, accumulate=1, seed=3, batch=BATCH, **changed):
    config = SourceConfig(source="test", batch=batch)
    return UnlearningDataModule(entity_data(**changed), byte_level(), PromptFormat(), config, steps, seed, accumulate)


class Learner(lightning.LightningModule):
    """Fits a number to the row ids of each stream (a mean over rows, so that equal shares add up), and writes down what it is served."""

    def __init__(self, interrupt_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.seen, self.interrupt_after = [], interrupt_after

    def training_step(self, batch, batch_idx):
        self.seen.append({stream: part.row_id_B.tolist() for stream, part in batch.items()})
        if len(self.seen) == self.interrupt_after:
            raise RuntimeError("pulled the plug")
        return sum((w * part.row_id_B / 100 - 1).square().mean() for w, part in zip(self.weight, batch.values(), strict=True))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(learner, data, folder, resume=None, every=1, **options):
    keep = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_on_exception=True)
    trainer = lightning.Trainer(
        max_steps=data.steps,
        max_epochs=-1,
        accumulate_grad_batches=data.accumulate,
        use_distributed_sampler=False,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(learner, datamodule=data, ckpt_path=resume)
    return trainer


def flat(seen):
    return [sorted(row for micro in seen for row in micro[stream]) for stream in STREAMS]


def test_rows_are_tokenised_once_and_found_under_their_sets():
    data = module()
    assert {name: len(part) for name, part in data.streams.items()} == {"forget": 5, "retain": 7, "known": 7, "unknown": 9}
    assert data.streams["known"][0] is data.streams["retain"][0] is data.evaluation["retain"][0]
    assert [row.row_id for row in data.latent["unknown"]] == [400, 401, 402]
    assert [row.row_id for row in data.generic] == [-1, -2]
    assert data.pad_id == data.tokenizer.pad_token_id
    assert data.active_streams == STREAMS


def test_a_batch_holds_every_stream_with_its_own_size():
    loader = module().train_dataloader()
    batches = [batch for batch, _, _ in loader]
    assert len(batches) == 6
    for batch in batches:
        assert list(batch) == list(STREAMS)
        assert all(isinstance(part, TokenBatch) for part in batch.values())
        assert {stream: len(part.row_id_B) for stream, part in batch.items()} == {"forget": 2, "retain": 4, "known": 4, "unknown": 6}


def test_active_streams_alone_are_served():
    data = module()
    data.active_streams = ("retain", "forget")
    assert data.active_streams == ("forget", "retain")
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert [list(batch) for batch in batches] == [["forget", "retain"]] * 6
    whole = [batch for batch, _, _ in module().train_dataloader()]
    assert [b["retain"].row_id_B.tolist() for b in batches] == [b["retain"].row_id_B.tolist() for b in whole]
    with pytest.raises(ConfigError, match=r"found 'retian'. Did you mean 'retain'\?"):
        data.active_streams = ("retian",)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, accumulate, at):
    whole = Learner()
    done = fit(whole, module(accumulate=accumulate), tmp_path / "a")
    assert len(whole.seen) == 6 * accumulate
    resumed = Learner()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        again = fit(resumed, module(accumulate=accumulate), tmp_path / "b", resume=tmp_path / "a" / f"step={at}.ckpt")
    assert resumed.seen == whole.seen[at * accumulate :]
    assert done.global_step == again.global_step == 6
    assert torch.equal(resumed.weight, whole.weight)


def test_run_can_be_made_longer(tmp_path):
    whole, start, longer = Learner(), Learner(), Learner()
    fit(whole, module(steps=9), tmp_path / "a")
    fit(start, module(steps=6), tmp_path / "b")
    fit(longer, module(steps=9), tmp_path / "b2", resume=tmp_path / "b" / "step=6.ckpt")
    assert start.seen + longer.seen == whole.seen
    assert torch.equal(longer.weight, whole.weight)


def test_run_that_broke_off_goes_on_at_the_broken_step(tmp_path):
    whole, broken, resumed = Learner(), Learner(interrupt_after=4), Learner()
    fit(whole, module(), tmp_path / "a")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(broken, module(), tmp_path / "b", every=100)
    (kept,) = (tmp_path / "b").glob("*.ckpt")
    fit(resumed, module(), tmp_path / "c", resume=kept)
    assert resumed.seen == whole.seen[3:]
    assert torch.equal(resumed.weight, whole.weight)


def test_checkpoint_from_the_middle_of_a_step_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(Learner(interrupt_after=6), module(accumulate=2), tmp_path, every=100)
    (kept,) = tmp_path.glob("*.ckpt")
    with pytest.raises(RunError) as error:
        fit(Learner(), module(accumulate=2), tmp_path / "b", resume=kept)
    assert str(error.value) == (
        "A run must be resumed from a checkpoint that was written after a whole optimiser step; "
        "found 5 micro-batches done, with 2 in a step."
    )


def test_accumulation_serves_the_same_rows_per_step(tmp_path):
    one, two = Learner(), Learner()
    fit(one, module(), tmp_path / "a")
    fit(two, module(accumulate=2), tmp_path / "b")
    for step in range(6):
        assert flat(one.seen[step : step + 1]) == flat(two.seen[2 * step : 2 * step + 2])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_draw_disjoint_shares_of_the_same_global_batch(world_size):
    batch = BatchConfig(forget=4, retain=4, known=8, unknown=8)
    data = module(batch=batch)
    alone = [served for served, _, _ in data.train_dataloader()]

    class OtherRank:
        global_step = 0
        fit_loop = lightning.Trainer(logger=False, accelerator="cpu").fit_loop

        def __init__(self, rank):
            self.distributed_sampler_kwargs = {"rank": rank, "num_replicas": world_size}

    ranks = []
    for rank in range(world_size):
        data.trainer = OtherRank(rank)
        ranks.append([served for served, _, _ in data.train_dataloader()])
    for step, whole in enumerate(alone):
        for stream in STREAMS:
            shares = [rank[step][stream].row_id_B.tolist() for rank in ranks]
            assert {len(share) for share in shares} == {getattr(batch, stream) // world_size}
            assert sorted(sum(shares, [])) == sorted(whole[stream].row_id_B.tolist())


def test_batch_that_cannot_be_shared_out_is_an_error():
    with pytest.raises(ConfigError) as error:
        module(accumulate=4).train_dataloader()
    assert str(error.value) == "data.batch.forget must be a positive multiple of devices x trainer.accumulate (1 x 4); found 2."


def test_rows_that_cannot_be_tokenised_stop_the_module():
    wrong = (*entity_data().streams["forget"][:1], *rows("Ann Lee", 1, 50, answer=" "))
    with pytest.raises(DataError, match=r"^row 50 \(Ann Lee\) must have an answer; found ' '\.$"):
        module(**{"streams/forget": wrong})


def test_zero_steps_train_nothing(tmp_path):
    learner = Learner()
    trainer = fit(learner, module(steps=0), tmp_path)
    assert (learner.seen, trainer.global_step) == ([], 0)
