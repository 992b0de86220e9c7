"""Training a TopK sparse autoencoder on activations that are in memory, with sae_lens' own training classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlearn.world.progress import steps_bar


@dataclass(frozen=True, kw_only=True)
class SAEQuality:
    """How well an SAE fits the activations it was trained on.

    ``fvu`` is the fraction of variance unexplained, sum |x - decode(encode(x))|^2 / sum |x - mean(x)|^2, ``l0`` the mean number of
    latents above zero, ``dead`` the number of latents that never fired on the sample.
    """

    fvu: float
    l0: float
    dead: int


def _draws(activations_ND: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches drawn with replacement, endlessly."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield activations_ND[torch.randint(len(activations_ND), (batch_size,), generator=generator)]


@torch.no_grad()
def sae_quality(sae: torch.nn.Module, activations_ND: Tensor) -> SAEQuality:
    """Measure an SAE of sae_lens (with ``encode`` and ``decode``) on activations."""
    acts = sae.encode(activations_ND)  # type: ignore[operator]
    error = (activations_ND - sae.decode(acts)).pow(2).sum()  # type: ignore[operator]
    spread = (activations_ND - activations_ND.mean(0)).pow(2).sum()
    fired = acts > 0
    return SAEQuality(fvu=float(error / spread), l0=float(fired.sum(-1).float().mean()), dead=int((~fired.any(0)).sum()))


def train_sae(
    activations_ND: Tensor,
    *,
    d_sae: int,
    k: int,
    steps: int,
    lr: float,
    seed: int,
    layer: int,
    model_name: str,
    out: Path,
    batch_size: int = 1024,
    title: str = "Training the sparse autoencoder",
    progress: bool = True,
) -> SAEQuality:
    """Train a TopK SAE (Gao et al., 2406.04093) and save it as a SAELens directory that reads the raw residual stream.

    Activations are scaled to a mean norm of sqrt(D) for training; the scale and the decoder norms are folded into the saved weights. The
    learning rate falls to zero over the last fifth of the steps. The global random state is left as it was.

    Args:
        activations_ND: residual-stream activations, float [N, D].
        d_sae: number of latents.
        k: latents that may fire at a position, 1 <= k <= d_sae.
        steps: optimiser steps, >= 1.
        lr: learning rate of Adam.
        seed: seed of the weights and of the batches.
        layer: block whose output the activations are (0-based); saved as hook ``blocks.{layer}.hook_resid_post``.
        model_name: saved in the metadata.
        out: folder that is written; ``sae_lens.SAE.load_from_disk(out)`` opens it.
        batch_size: activations in a step.
        title: name of the progress bar.
        progress: whether a progress bar may be shown.

    Returns:
        The quality of the saved SAE on (at most 20,000 of) the activations.
    """
    from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    width = activations_ND.shape[1]
    metadata = SAEMetadata(
        model_name=model_name, hook_name=f"blocks.{layer}.hook_resid_post", hook_layer=layer, hook_head_index=None, prepend_bos=True
    )
    settings = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=0.0,
        lr_decay_steps=steps // 5,
        dead_feature_window=100,
        feature_sampling_window=steps + 1,
        logger=LoggingConfig(log_to_wandb=False),
    )
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), steps_bar(title, steps, show=progress) as advance:
        torch.manual_seed(seed)
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=width, d_sae=d_sae, k=k, normalize_activations="expected_average_only_in", metadata=metadata)
        )
        batches = _draws(activations_ND, batch_size, seed)
        trainer = SAETrainer(settings, sae, batches)
        trainer.activation_scaler.scaling_factor = width**0.5 / float(activations_ND.norm(dim=-1).mean())
        for _ in range(steps):
            trainer.step(next(batches))
            trainer.n_training_steps += 1
            advance()
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
    sae.save_inference_model(out)
    return sae_quality(SAE.load_from_disk(out), activations_ND[:20_000])
