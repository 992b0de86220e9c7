"""The LightningModule: a frozen SAE inside the method, the trained layers of the language model, one training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import LambdaLR

from unlearn.functional.parts import Accumulation
from unlearn.functional.ranks import across_ranks, averaged, largest
from unlearn.functional.schedule import learning_rate_factor
from unlearn.models.bits import make_optimiser
from unlearn.models.decoder import device_of
from unlearn.models.sharded import Sharded
from unlearn.tracking.randomness import Replay, everyone, random_state, set_random_state

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from unlearn.config.schema import OptimConfig
    from unlearn.data.module import UnlearningDataModule
    from unlearn.methods.base import Method
    from unlearn.types import LossTerms, TokenBatch


class UnlearningModule(LightningModule):
    """Trains the unfrozen weights of ``lm`` on the loss of ``method``.

    Callbacks measure and loggers record; this module does neither beyond logging the loss terms as ``train/<term>``. A checkpoint holds
    what training changes: the trained weights, the method's state, and the random state of every process.
    """

    def __init__(self, lm: PreTrainedModel, method: Method, optim: OptimConfig) -> None:
        """Take objects that are ready to use.

        Args:
            lm: the language model, with ``requires_grad`` set on the weights to train.
            method: the loss; holds the frozen SAE.
            optim: optimiser and schedule.
        """
        super().__init__()
        self.lm = lm
        self.method = method
        self.optim = optim
        self.strict_loading = False
        self.concluded = False
        self._sharded: Sharded | None = None
        self._accumulation = Accumulation()
        self.logged: dict[str, Tensor] = {}
        self._random: dict[str, Any] | None = None

    def configure_model(self) -> None:
        """Share the weights out over the processes where the strategy has a mesh of them."""
        if self._sharded is None and self.device_mesh is not None:
            self._sharded = Sharded(self.lm, self.device_mesh["data_parallel"], str(self.trainer.precision))

    def whole(self) -> PreTrainedModel:
        """The language model as it stands, in one piece: itself, or a copy where its weights are shared out; every process must ask."""
        return self.lm if self._sharded is None else cast("PreTrainedModel", self._sharded.whole())

    def on_train_start(self) -> None:
        """Go on with the random state of the checkpoint, now that nothing draws any more before the first step."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_start(self, batch: Mapping[str, TokenBatch], batch_idx: int) -> None:
        """Tell the method which optimiser step begins."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.method.before_step(self.lm, self.trainer.global_step, self.optim.steps)

    def training_step(self, batch: Mapping[str, TokenBatch], batch_idx: int) -> Tensor:
        """Loss of a step, over the rows of all processes and micro-batches, with the gradient for those of this micro-batch.

        Logs the total as ``train/loss`` and every named term.
        """
        with across_ranks():
            terms = self._terms(batch, batch_idx)
            logged = averaged({f"train/{name}": value for name, value in {"loss": terms.total, **terms.terms}.items()})
        self.logged = {name: value.detach() for name, value in logged.items()}
        if self.trainer._results is not None:
            self.trainer._results.clear()  # Lightning goes on logging the last value of a term that a method has stopped to give
        self.log_dict(logged, batch_size=sum(len(b.row_id_B) for b in batch.values()), on_step=True, on_epoch=False)
        self.log("loss", logged["train/loss"], batch_size=1, prog_bar=True, logger=False)
        return terms.total

    def _terms(self, batch: Mapping[str, TokenBatch], batch_idx: int) -> LossTerms:
        """The method's loss; where a step has several micro-batches, each is computed knowing what all of them say."""
        n = self.trainer.accumulate_grad_batches
        if n == 1:
            return self.method.loss(self.lm, batch)
        if batch_idx % n == 0:
            data = cast("UnlearningDataModule", self.trainer.datamodule)
            self._step = [self.trainer.strategy.batch_to_device(each) for each in data.micro_batches(self.trainer.global_step)]
            self._replay = Replay(self.method, n)
        loss = self._replay.of(lambda index: self.method.loss(self.lm, self._step[index]))
        if batch_idx % n == 0:
            return self._accumulation.first(n, loss, self._anywhere)
        return self._accumulation.next(batch_idx % n, loss)

    def _anywhere(self, here: bool) -> bool:
        return bool(largest(int(here), self.device))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the method change the gradients of the whole step."""
        self.method.adjust_gradients(self.lm)

    def conclude(self, *, restored: bool = False) -> None:
        """Bring the model to its final form: edits after the last step, and what acts at inference. A second call does nothing.

        Args:
            restored: whether the final weights were loaded, so that only what acts at inference is missing.
        """
        if self.concluded:
            return
        self.concluded = True
        if self._sharded is not None:
            self.lm, self._sharded = self.whole(), None
            self.method.to(device_of(self.lm))
        if not restored:
            self.method.finish(self.lm)
        self.method.install(self.lm)

    def final_state(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of every trained weight, of the language model's under ``lm.`` and of the method's under ``method.``."""
        return {name: p.detach().cpu().clone().contiguous() for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights and the method's state; add the random state."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k.endswith("_extra_state")}
        checkpoint["rng"] = everyone(random_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's random state; one that was not there when the checkpoint was written keeps its own."""
        states = checkpoint["rng"]
        self._random = states[self.global_rank] if self.global_rank < len(states) else None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the trained weights; warm-up, then constant, linear or cosine decay."""
        o = self.optim
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = make_optimiser(o, trained)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, o.steps, o.warmup_steps, o.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
