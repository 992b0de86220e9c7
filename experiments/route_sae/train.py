"""Train a RouteSAE (Shi et al., arXiv 2503.08200) on every block of the embedded world.

    python experiments/route_sae/train.py FOLDER [key=value ...]

The recipe follows the authors' code: outputs standardised per token, their sum to the router, the chosen one times its probability to a
TopK SAE with a tied start and unit decoder vectors, mean over tokens of ||x - x_hat||^2 / ||x||^2, Adam, linear warm-up over 5 % of the
steps, linear decay over the last 20 %. Batch, learning rate, rows and latents are those of the world's own SAE, the steps twice as many.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.assembly import cache_folder
from unlearn.config.load import load_config
from unlearn.config.schema import RunConfig
from unlearn.models.route_sae import Routing, route, save_route_sae, shared_topk
from unlearn.world.build import SAE_SAMPLE
from unlearn.world.corpus import MIX, Corpus

UNSEEN = SAE_SAMPLE + 500_000
"""Step number from which the rows for measurement are drawn."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How it is trained."""

    layers: tuple[int, ...] = (0, 1, 2, 3)
    d_sae: int = 512
    k: int = 16
    steps: int = 2000
    batch: int = 512
    lr: float = 2e-3
    rows: int = 1920
    seed: int = 0


class Trained(nn.Module):
    """The weights in training: router, encoder, decoder, biases."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.k = recipe.k
        self.routing = Routing(layers=recipe.layers)
        self.router_LD = nn.Parameter(nn.Linear(width, len(recipe.layers), bias=False).weight.detach().clone())
        self.decoder_FD = nn.Parameter(nn.functional.normalize(torch.randn(recipe.d_sae, width), dim=-1))
        self.encoder_DF = nn.Parameter(self.decoder_FD.detach().T.clone())
        self.b_dec_D, self.b_enc_F = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(recipe.d_sae))

    def forward(self, hidden_NLD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(what is encoded [N, D], its reconstruction [N, D], activations [N, F], index of the block [N])."""
        x_ND, chosen_N = route(hidden_NLD, self.router_LD, self.routing)
        pre_NF = (x_ND - self.b_dec_D) @ self.encoder_DF + self.b_enc_F
        top = pre_NF.topk(self.k, dim=-1)
        acts_NF = torch.zeros_like(pre_NF).scatter(-1, top.indices, top.values.relu())
        return x_ND, acts_NF @ self.decoder_FD + self.b_dec_D, acts_NF, chosen_N

    @torch.no_grad()
    def normalise(self) -> None:
        """Decoder vectors of length one."""
        self.decoder_FD /= self.decoder_FD.norm(dim=-1, keepdim=True)


@torch.no_grad()
def outputs(lm: Any, corpus: Corpus, row_tokens: int, layers: tuple[int, ...], rows: int, start: int) -> Tensor:
    """Outputs of the blocks on corpus rows, boundary tokens left out, [N, L, D]."""
    from unlearn.models.capture import tapped

    kept = []
    for first in range(0, rows, 32):
        ids = corpus.batch(start + first, min(32, rows - first), row_tokens, MIX)
        with tapped(lm, layers) as found:
            lm.base_model(input_ids=ids, use_cache=False)
        kept.append(torch.stack([found[layer] for layer in layers], dim=-2)[ids != corpus.boundary])
    return torch.cat(kept)


def fit(hidden_NLD: Tensor, recipe: Recipe) -> Trained:
    """Train on activations [N, L, D] that are in memory."""
    torch.manual_seed(recipe.seed)
    model = Trained(hidden_NLD.shape[-1], recipe)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.9, 0.999))
    warm, fall = 0.05 * recipe.steps, 0.2 * recipe.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: min(1.0, (n + 1) / warm, (recipe.steps - n) / fall))
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.steps):
        x_ND, rebuilt_ND, _, _ = model(hidden_NLD[torch.randint(len(hidden_NLD), (recipe.batch,), generator=generator)])
        loss = ((rebuilt_ND - x_ND).square().sum(-1) / x_ND.square().sum(-1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        model.normalise()
    return model


@torch.no_grad()
def quality(model: Trained, hidden_NLD: Tensor) -> dict[str, Any]:
    """FVU, latents that are on, latents that never were, and the share of tokens that each block serves."""
    x_ND, rebuilt_ND, acts_NF, chosen_N = model(hidden_NLD)
    counts = torch.bincount(chosen_N, minlength=len(model.routing.layers))
    return {
        "fvu": float((x_ND - rebuilt_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum()),
        "l0": float((acts_NF > 0).sum(-1).float().mean()),
        "dead": int((acts_NF <= 0).all(0).sum()),
        "shares": {str(layer): int(n) / len(x_ND) for layer, n in zip(model.routing.layers, counts, strict=True)},
    }


def build(config: RunConfig, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Train on the world that ``config`` names, write the RouteSAE to ``folder``; what came of it."""
    from unlearn.models.lm import load_lm
    from unlearn.world.source import WorldSource

    started, cpu = time.perf_counter(), time.process_time()
    source = WorldSource(config.data, seed=config.seed, cache=cache_folder(config))
    lm, tokenizer = load_lm(config.model, source.assets().model)
    corpus = Corpus(source.encyclopaedia(), tokenizer, seed=source.world_seed)
    size = source.config.spec().row_tokens
    model = fit(outputs(lm, corpus, size, recipe.layers, recipe.rows, SAE_SAMPLE), recipe)
    sae = shared_topk(encoder_DF=model.encoder_DF, b_enc_F=model.b_enc_F, decoder_FD=model.decoder_FD, b_dec_D=model.b_dec_D, k=recipe.k)
    save_route_sae(folder, sae, model.router_LD, model.routing)
    facts = quality(model, outputs(lm, corpus, size, recipe.layers, 64, UNSEEN))
    facts |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    (folder / "quality.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def main(folder: str, *overrides: str) -> None:
    """Train and print what came of it."""
    config = load_config({"name": "route_sae", "data": {"source": "world"}, "method": {"name": "none"}}, list(overrides))
    torch.set_num_threads(config.trainer.threads or torch.get_num_threads())
    print(json.dumps(build(config, Path(folder), Recipe(seed=config.seed)), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
