import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unlearn.functional.ridge import fit_change, fit_readout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 3
Y = RNG.normal(size=(50, 6))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
def test_the_map_is_ridge_regression_of_the_difference(penalty):
    alpha = penalty * ((X - X.mean(0)) ** 2).sum() / 6
    theirs = Ridge(alpha=alpha).fit(X, Y - X)
    mine = fit_change(torch.tensor(X), torch.tensor(Y), penalty)
    np.testing.assert_allclose(mine.weight_DD.numpy(), theirs.coef_.T, atol=1e-5)
    np.testing.assert_allclose(mine(torch.tensor(X)).numpy(), X + theirs.predict(X), atol=1e-4)


def test_a_linear_change_is_found_and_a_large_penalty_only_shifts():
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    mine = fit_change(torch.tensor(X), torch.tensor(X @ turn + 1), 1e-9)
    np.testing.assert_allclose(mine(torch.tensor(X)).numpy(), X @ turn + 1, atol=1e-4)
    shift = fit_change(torch.tensor(X), torch.tensor(Y), 1e12)
    np.testing.assert_allclose(shift(torch.tensor(X)).numpy(), X + (Y - X).mean(0), atol=1e-4)


def test_more_directions_than_rows_and_equal_rows_are_no_problem():
    few = torch.tensor(X[:3], dtype=torch.bfloat16)
    mapped = fit_change(few, few + 1, 0.01)(few)
    assert mapped.dtype == torch.bfloat16
    assert torch.isfinite(mapped).all()
    same = torch.ones(4, 2)
    torch.testing.assert_close(fit_change(same, same + 2, 0.1)(same), same + 2)


@pytest.mark.parametrize("rows", [50, 5])
def test_a_readout_is_a_ridge_classifier_on_standardised_activations(rows):
    """With more rows than directions and with fewer; a direction that never moves is no problem."""
    x, classes = np.concatenate([X[:rows], np.ones((rows, 1))], axis=1), np.arange(rows) % 3
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=7.0)).fit(x, classes)
    mine = fit_readout(torch.tensor(x), torch.tensor(classes), 3, 7.0)
    np.testing.assert_allclose((torch.tensor(x).float() @ mine.weight_DV + mine.bias_V).numpy(), theirs.decision_function(x), atol=1e-4)
