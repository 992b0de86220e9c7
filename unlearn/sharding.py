"""``trainer.strategy: fsdp2``: Lightning's ModelParallelStrategy over all processes, on GPUs and on the CPU alike.

Of a checkpoint, only what is trained is gathered; rank 0 writes it in one file, through the trainer's checkpoint plug-in, in the form in
which any number of processes can go on with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType


class ShardedStrategy(ModelParallelStrategy):
    """One mesh dimension of data parallelism over every process; no tensor parallelism."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Share the weights out over every device of every node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights and the method's state, whole and on the CPU, on rank 0; every process must call this."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint through the checkpoint plug-in and give every process its share of weights and optimiser state."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), "cpu", weights_only)
        model: Any = self.model
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        saved = checkpoint["state_dict"]
        method = {name: value for name, value in saved.items() if name.endswith("_extra_state")}
        set_model_state_dict(model, {name: value for name, value in saved.items() if name not in method}, options=options)
        model.load_state_dict(method, strict=False)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, model)
            set_optimizer_state_dict(model, optimizer, named, options=options)
        return checkpoint
