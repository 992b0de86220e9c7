from __future__ import annotations

import pytest
import torch

from unlearn.config.schema import LatentsConfig
from unlearn.errors import ConfigError
from unlearn.latents.selection import choose, separation


def test_scores_by_hand() -> None:
    known = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 5.0, 1.0]])
    unknown = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1e-9]])
    scores = separation(known, unknown)
    assert scores.fires_known_F.tolist() == [0.75, 0.25, 0.75]
    assert scores.fires_unknown_F.tolist() == [0.0, 1.0, 0.5]
    assert scores.known_F.tolist() == [0.75, -0.75, 0.25]
    assert scores.unknown_F.tolist() == [-0.75, 0.75, -0.25]


def planted(n: int = 40, latents: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents 3 and 4 fire on known rows only, 10 and 11 on unknown rows only, the others on half of either."""
    generator = torch.Generator().manual_seed(0)
    known, unknown = ((torch.rand(n, latents, generator=generator) > 0.5).float() for _ in range(2))
    known[:, [3, 4]], unknown[:, [3, 4]] = 1.0, 0.0
    known[:, [10, 11]], unknown[:, [10, 11]] = 0.0, 1.0
    return known, unknown


def test_separation_finds_planted_latents_on_both_sides() -> None:
    assert choose(separation(*planted()), LatentsConfig(top_k=2)).tolist() == [3, 4, 10, 11]


def test_random_takes_as_many_and_repeats_with_its_seed() -> None:
    scores = separation(*planted())
    config = LatentsConfig(select="random", top_k=5)
    first = choose(scores, config, seed=1)
    assert len(first) == len(set(first.tolist())) == 10
    assert torch.equal(first, choose(scores, config, seed=1))
    assert not torch.equal(first, choose(scores, config, seed=2))


def test_all_takes_every_latent() -> None:
    assert choose(separation(*planted()), LatentsConfig(select="all")).tolist() == list(range(30))


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"latents\.top_k must be <= 15 for an SAE with 30 latents; found 16\."):
        choose(separation(*planted()), LatentsConfig(top_k=16))
