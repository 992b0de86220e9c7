"""Models with their weights shared out over two processes, beside plain copies of them: what ``test_sharded`` and
experiments/reliability/sharded.py have done in each process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.sharded import RANKS
from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.models.capture import capture
from unlearn.models.decoder import head, output_head
from unlearn.models.forward import forward, generate
from unlearn.models.sharded import Sharded, full, local
from unlearn.models.trainable import select_trainable


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (RANKS,))


def models() -> dict[str, nn.Module]:
    """Families with their own ways, trained in parts: tied and untied heads, learnt positions, adapters, frozen weights in between."""
    only = TrainableConfig(mode="modules", modules=["q_proj", "layernorm", "mlp"], blocks="1-2", embeddings=True)
    chosen = {
        "llama": (tiny_llama(), TrainableConfig(mode="full")),
        "llama in parts": (tiny_llama(seed=1), only),
        "tied llama": (tiny_llama(tie=True), TrainableConfig(mode="full")),
        "gemma 2": (tiny_gemma2(), TrainableConfig(blocks="1")),
        "gpt 2": (tiny_gpt2(), TrainableConfig(mode="full")),
        "lora": (tiny_llama(seed=2), TrainableConfig(mode="lora")),
    }
    models = {}
    for name, (lm, trainable) in chosen.items():
        models[name], _ = select_trainable(lm, ModelConfig(trainable=trainable, lora=LoRAConfig(rank=2)), None)
        for n, p in models[name].named_parameters():
            if "lora_B" in n:  # zero to begin with, which would hide the gradient of lora_A
                nn.init.normal_(p.data, std=0.1, generator=torch.Generator().manual_seed(1))
    return models


def _loss(lm: nn.Module, seed: int) -> torch.Tensor:
    """A loss through early exit, block outputs on the way, all logits, and the head called by itself."""
    batch = tiny_batch(seed=seed)
    early = capture(lm, batch, 1).square().mean()
    out = forward(lm, batch, layers=(-1, 2))
    alone = head(lm, out.hidden[2][:, 0]).logsumexp(-1).mean()
    nll = nn.functional.cross_entropy(out.logits_AV.float(), out.targets_A)
    return early + out.hidden[2].mean() + out.hidden[-1].square().mean() + 0.1 * alone + nll


def _steps(lm: nn.Module, close: Callable[[], None]) -> list[float]:
    """Three steps of AdamW with the gradients clipped, each after two backward passes and an early exit without a graph."""
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-3, eps=1e-5)
    losses = []
    for step in range(3):
        with torch.no_grad():
            capture(lm, tiny_batch(seed=10 + step), 0)
        for part in range(2):
            loss = _loss(lm, 2 * step + part)
            loss.backward()
            losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_([p for p in lm.parameters() if p.requires_grad], 0.5)
        losses.append(float(full(norm)))
        close()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def families() -> dict[str, dict[str, Any]]:
    """In each of two processes: how far a sharded model strays from its plain copy, and what it holds."""
    found: dict[str, dict[str, Any]] = {}
    for name, lm in models().items():
        plain = copy.deepcopy(lm)
        shared = Sharded(lm, _mesh(), "32-true")
        before = all(torch.equal(a, b) for a, b in zip(shared.whole().parameters(), plain.parameters(), strict=True))
        wanted, got = _steps(plain, lambda: None), _steps(lm, shared.close)
        whole = shared.whole()
        tied = getattr(plain, "config", None) is not None and plain.config.tie_word_embeddings
        found[name] = {
            "the same before": before,
            "loss": max(abs(a - b) for a, b in zip(wanted, got, strict=True)),
            "weights": max(float((a - b).detach().abs().max()) for a, b in zip(whole.parameters(), plain.parameters(), strict=True)),
            "names": [n for n, _ in whole.named_parameters()] == [n for n, _ in plain.named_parameters()],
            "trained": [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in plain.parameters()],
            "tied": (next(iter(output_head(whole).parameters())) is whole.get_input_embeddings().weight) == bool(tied),  # type: ignore[operator]
            "share": sum(local(p).numel() for p in lm.parameters()) / sum(p.numel() for p in plain.parameters()),
        }
    return found


def shares() -> dict[str, float]:
    """Share of the numbers that this process holds of weights, gradients and optimiser state, all weights being trained."""
    lm = tiny_llama(d_model=64, layers=6)
    total = sum(p.numel() for p in lm.parameters())
    Sharded(lm, _mesh(), "32-true")
    optimizer = torch.optim.AdamW(lm.parameters())
    _loss(lm, 0).backward()
    optimizer.step()
    states = [s["exp_avg"].to_local().numel() + s["exp_avg_sq"].to_local().numel() for s in optimizer.state.values()]
    return {
        "weights": sum(local(p).untyped_storage().nbytes() for p in lm.parameters()) / (4 * total),
        "gradients": sum(local(p.grad).numel() for p in lm.parameters() if p.grad is not None) / total,
        "optimiser": sum(states) / (2 * total),
    }


def _steps_of_copies(lm: nn.Module) -> list[float]:
    """``_steps`` written out: passes through a bfloat16 copy, whose gradients are added up in fp32 for the weights that are kept."""
    low = copy.deepcopy(lm)
    for p in low.parameters():
        p.data = p.data.bfloat16()
    pairs = [(kept, used) for kept, used in zip(lm.parameters(), low.parameters(), strict=True) if kept.requires_grad]
    optimizer = torch.optim.AdamW([kept for kept, _ in pairs], lr=1e-3, eps=1e-5)
    losses = []
    for step in range(3):
        for part in range(2):
            loss = _loss(low, 2 * step + part)
            loss.backward()
            losses.append(loss.item())
            for kept, used in pairs:
                kept.grad = used.grad.float() + (0.0 if kept.grad is None else kept.grad)  # type: ignore[union-attr]
                used.grad = None
        losses.append(float(torch.nn.utils.clip_grad_norm_([kept for kept, _ in pairs], 0.5)))
        optimizer.step()
        optimizer.zero_grad()
        for kept, used in pairs:
            used.data.copy_(kept.data)
    return losses


def mixed() -> dict[str, Any]:
    """An fp32 model gathered in bfloat16, and fp32 adapters on a bfloat16 model, each beside the same arithmetic written out."""
    found = {}
    for name, dtype, mode in (("fp32 weights", torch.float32, "full"), ("fp32 adapters", torch.bfloat16, "lora")):
        lm, _ = select_trainable(tiny_llama().to(dtype), ModelConfig(trainable=TrainableConfig(mode=mode), lora=LoRAConfig(rank=2)), None)
        plain = copy.deepcopy(lm)
        shared = Sharded(lm, _mesh(), "bf16-mixed")
        with torch.autocast("cpu", torch.bfloat16):
            wanted, got = _steps_of_copies(plain), _steps(lm, shared.close)
        kept = {n: p.dtype for n, p in shared.whole().named_parameters()}
        apart = [abs(a - b) / abs(a) for a, b in zip(wanted, got, strict=True)]
        found[name] = {
            "first losses": max(apart[:2]),
            "first norm": apart[2],
            "later": max(apart[3:]),
            "dtypes": kept == {n: p.dtype for n, p in plain.named_parameters()},
            "trained in": sorted({str(p.dtype) for p in lm.parameters() if p.requires_grad}),
        }
    return found


def uneven() -> bool:
    """Whether processes may read the gathered copy each in batches of its own, and write texts from it."""
    from torch.distributed import get_rank

    lm = tiny_llama()
    plain = copy.deepcopy(lm)
    whole = Sharded(lm, _mesh(), "32-true").whole()
    from tests.tiny import tiny_tokenizer

    prompts = [[1, 5, 6], [1, 7]][: 1 + get_rank()]
    same = [generate(m, tiny_tokenizer(), prompts, 3 + get_rank(), batch_size=1) for m in (whole, plain)]
    return same[0] == same[1]
