"""One of some processes that share the rows of a step on one device: ``python -m tests.gpu.ranks BACKEND RANK SIZE DEVICE PORT FOLDER``.

It computes means and the like as losses do, with its share of made-up rows, and runs the collectives that the package uses, and writes what
it found to ``FOLDER/rank<RANK>.json``. With a size of 0 it is alone, without a process group.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unlearn.evaluation.shard import spread
from unlearn.functional.ranks import SharedRows, across_ranks, averaged, largest, masked_mean, mean, variance
from unlearn.metrics.likelihood import Perplexity
from unlearn.tracking.randomness import everyone, random_state

ROWS, WIDTH = 7, 5


def losses(rank: int, size: int, device: str) -> dict[str, Any]:
    """What losses are made of, of every ``size``-th row from ``rank`` on, and the gradients summed over the rows of this process."""
    whole_MD = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    x_ND = whole_MD[rank::size].to(device).requires_grad_(True)
    with across_ranks():
        rows = SharedRows(torch.arange(len(x_ND), device=device))
        all_MD = rows.all(x_ND)
        kernel = torch.cdist(all_MD, all_MD.detach()).square().mean()
        total = mean(x_ND.square()) + masked_mean(x_ND, x_ND > 0) + kernel
        shared = averaged({"total": total})
        found = {
            "total": float(total), "averaged": float(shared["total"]), "rows": all_MD.tolist(), "own": rows.own_N.tolist(),
            "variance": variance(x_ND).tolist(), "largest": largest(len(x_ND), torch.device(device)),
        }  # fmt: skip
    total.backward()
    return found | {"gradient": (x_ND.grad / size).tolist()}


def collectives(rank: int, size: int, device: str) -> dict[str, Any]:
    """Each collective of the package by itself, with the kinds of tensors that it is used for."""
    summed, most = torch.tensor([1.5, rank], dtype=torch.float64, device=device), torch.tensor(rank, device=device)
    dist.all_reduce(summed)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    counts = [torch.zeros((), dtype=torch.long, device=device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor(3 + rank, device=device))
    parts = [torch.empty(2, WIDTH, device=device) for _ in range(size)]
    dist.all_gather(parts, torch.full((2, WIDTH), float(rank), device=device))
    box = [{"rank": rank}]
    dist.broadcast_object_list(box, 0)
    metric = Perplexity().to(device)
    metric.update(torch.zeros(rank + 1, 4, device=device), torch.zeros(rank + 1, dtype=torch.long, device=device))
    return {
        "summed": summed.tolist(), "most": int(most), "counts": [int(n) for n in counts], "parts": torch.stack(parts).mean((1, 2)).tolist(),
        "box": box[0]["rank"], "states": len(everyone(random_state())),
        "spread": spread(list(range(5)), lambda items: [2 * i for i in items]),
        "perplexity": float(metric.compute()),
    }  # fmt: skip


def main(backend: str, rank: str, size: str, device: str, port: str, folder: str) -> None:
    """Compute, and write down what was found."""
    number, count = int(rank), int(size)
    if device == "cuda":
        torch.cuda.set_device(0)
    if count:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        dist.init_process_group(backend, rank=number, world_size=count)
    found = losses(number, max(1, count), device)
    if count:
        found["collectives"] = collectives(number, count, device)
        dist.destroy_process_group()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
