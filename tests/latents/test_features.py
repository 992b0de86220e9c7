from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

import unlearn.latents.features as module
from tests.oracles.load import OracleSAE, oracle, sae_hidden
from tests.toys import LAYER, Toy, toy
from unlearn.errors import DataError
from unlearn.latents.features import FeatureStats, below_ceiling, by_count, by_ratio, measure_features, stats_of
from unlearn.models.capture import capture

SAE = oracle("sae")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def crisp_stats(layer: int) -> tuple[FeatureStats, FeatureStats]:
    both = []
    for side in ("target", "benign"):
        hidden_BTD, mask_BT = sae_hidden(side, layer)
        both.append(stats_of(OracleSAE().encode(hidden_BTD)[mask_BT]))
    return both[0], both[1]


@pytest.mark.parametrize("layer", [1, 2])
def test_counts_and_sums_are_those_of_crisp(layer: int) -> None:
    forget, retain = crisp_stats(layer)
    for row in SAE["crisp"][f"features_layer{layer}"]:
        i = row["index"]
        assert forget.count_F[i] == row["target_count"]
        assert retain.count_F[i] == row["benign_count"]
        assert forget.sum_F[i].item() == pytest.approx(row["target_acts"], abs=1e-6)
        assert retain.sum_F[i].item() == pytest.approx(row["benign_acts"], abs=1e-6)


@pytest.mark.parametrize("layer", [1, 2])
def test_ranking_is_that_of_crisp(layer: int) -> None:
    forget, retain = crisp_stats(layer)
    assert by_count(forget, retain, n=24).tolist() == [row["index"] for row in SAE["crisp"][f"features_layer{layer}"]]
    assert by_count(forget, retain, n=5).tolist() == SAE["crisp"][f"topk5_layer{layer}"]
    assert by_count(forget, retain, n=5, min_ratio=3.0).tolist() == SAE["crisp"][f"topk5_filtered_layer{layer}"]
    assert by_count(forget, retain, n=4).tolist() == SAE["crisp"][f"salient_for_loss_layer{layer}"]


def test_ratio_is_asked_of_the_ten_n_best_by_count_only() -> None:
    count = torch.arange(30.0).flip(0)
    total = torch.ones(30)
    total[[3, 12]] = 9.0
    forget, retain = FeatureStats(40, count, total, total), FeatureStats(40, torch.zeros(30), torch.ones(30), total)
    assert by_count(forget, retain, n=1, min_ratio=3.0).tolist() == [3]
    assert by_count(forget, retain, n=2, min_ratio=3.0).tolist() == [3, 12]


@pytest.mark.parametrize("ceiling", [0.01, 0.001])
def test_selection_is_that_of_saebench(ceiling: float) -> None:
    select = SAE["saebench"]["select"]
    forget_F, retain_F = (torch.tensor(select[f"{side}_sparsity"], dtype=torch.float64) for side in ("forget", "retain"))
    assert below_ceiling(forget_F, retain_F, ceiling).tolist() == select[f"threshold_{ceiling}"]
    assert below_ceiling(forget_F, retain_F, ceiling, 3).tolist() == select[f"threshold_{ceiling}"][:3]


def test_ratio_percentile_is_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    forget_F, retain_F = torch.rand(200, generator=generator).double(), torch.rand(200, generator=generator).double()
    forget_F[:20] = 0
    ratio = (forget_F / (retain_F + 1e-21)).numpy()
    wanted = np.where(ratio >= np.percentile(ratio, 90))[0]
    wanted = wanted[np.argsort(-forget_F.numpy()[wanted])]
    assert by_ratio(forget_F, retain_F, 90).tolist() == wanted.tolist()
    assert by_ratio(forget_F, retain_F, 90, 4).tolist() == wanted[:4].tolist()
    assert 0 not in forget_F[by_ratio(forget_F, retain_F, 0)]


def test_statistics_leave_out_padding_and_bos_and_do_not_depend_on_the_batches(made: Toy) -> None:
    rows, bos = made.data.streams["forget"], made.tokenizer.bos_token_id
    one = measure_features(made.lm, made.sae, made.reader(64).batches(rows), LAYER, bos)
    many = measure_features(made.lm, made.sae, made.reader(1).batches(rows), LAYER, bos)
    assert one.tokens == many.tokens == sum(len(row.ids) - 1 for row in made.reader().tokens(rows))
    for name in ("count_F", "sum_F", "square_F"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name), atol=1e-4, rtol=1e-4)


def test_statistics_by_hand(made: Toy) -> None:
    batch = made.reader(1).batches(made.data.streams["forget"][:1])[0]
    acts_NF = made.sae.encode(capture(made.lm, batch, LAYER))[0, 1:].double()
    stats = measure_features(made.lm, made.sae, [batch], LAYER, made.tokenizer.bos_token_id)
    torch.testing.assert_close(stats.rate_F, (acts_NF > 0).double().mean(0))
    torch.testing.assert_close(stats.mean_F, acts_NF.mean(0))
    torch.testing.assert_close(stats.mean_square_F, acts_NF.square().mean(0))


def test_no_rows_are_refused(made: Toy) -> None:
    with pytest.raises(DataError, match="found none"):
        measure_features(made.lm, made.sae, [], LAYER, None)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
