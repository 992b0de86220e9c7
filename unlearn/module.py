"""The LightningModule: a frozen SAE inside the method, the trained layers of the language model, one training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import LambdaLR

from unlearn.functional.schedule import learning_rate_factor

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from unlearn.config.schema import OptimConfig
    from unlearn.methods.base import Method
    from unlearn.types import TokenBatch


class UnlearningModule(LightningModule):
    """Trains the unfrozen weights of ``lm`` on the loss of ``method``.

    Callbacks measure and loggers record; this module does neither beyond logging the loss terms as ``train/<term>``. A checkpoint holds
    what training changes: the trained weights, the method's state, and the random state of this process.
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

    def on_train_batch_start(self, batch: Mapping[str, TokenBatch], batch_idx: int) -> None:
        """Tell the method which optimiser step begins."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.method.before_step(self.lm, self.trainer.global_step, self.optim.steps)

    def training_step(self, batch: Mapping[str, TokenBatch], batch_idx: int) -> Tensor:
        """Loss of one batch of streams; logs the total as ``train/loss`` and every named term."""
        terms = self.method.loss(self.lm, batch)
        logged = {f"train/{name}": value.detach() for name, value in {"loss": terms.total, **terms.terms}.items()}
        self.log_dict(logged, batch_size=sum(len(b.row_id_B) for b in batch.values()), on_step=True, on_epoch=False)
        self.log("loss", terms.total.detach(), batch_size=1, prog_bar=True, logger=False)
        return terms.total

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
        checkpoint["rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random state of the checkpoint."""
        torch.set_rng_state(checkpoint["rng"].cpu())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the trained weights; warm-up, then constant, linear or cosine decay."""
        o = self.optim
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=o.lr, betas=(o.betas[0], o.betas[1]), weight_decay=o.weight_decay)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, o.steps, o.warmup_steps, o.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
