"""Started by tests in the place of experiments/run.py, which it runs: it also writes down what each process was served, and where it ran.
With the variable LOADED, it takes over what another process has loaded (``tests.loaded``).

Two things can be asked of it by environment variables: RECORD names the folder of the records, SIGNAL_AT the optimiser step before which
the last process sends itself SIGUSR1, as a scheduler would.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from tests.loaded import hand_over

    hand_over(sys.argv)

from unlearn.module import UnlearningModule
from unlearn.processes import place

SCRIPT = Path(__file__).parents[2] / "experiments" / "run.py"


def own_address() -> str:
    """Address from which this process talks to the first one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
        return str(probe.getsockname()[0])


def recorded(step: Any) -> Any:
    def training_step(self: UnlearningModule, batch: Any, batch_idx: int) -> Any:
        trainer = self.trainer
        rows = {stream: tokens.row_id_B.tolist() for stream, tokens in batch.items()}
        said = {
            "step": trainer.global_step,
            "rows": rows,
            "rank": trainer.global_rank,
            "size": trainer.world_size,
            "node": trainer.node_rank,
        }
        said |= {"local_rank": trainer.local_rank, "address": own_address(), "pid": os.getpid(), "place": vars(place())}
        with (Path(os.environ["RECORD"]) / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(said) + "\n")
        if os.environ.get("SIGNAL_AT") == str(trainer.global_step) and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, batch_idx)

    return training_step


if __name__ == "__main__":
    UnlearningModule.training_step = recorded(UnlearningModule.training_step)
    sys.argv[0] = str(SCRIPT)
    runpy.run_path(str(SCRIPT), run_name="__main__")
