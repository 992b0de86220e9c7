"""Terms that make a forgotten entity one that was never known: its codes, its answers, and what relearning brings out of it.

Every function is of tensors only; means and comparisons over rows count those of all processes (``unlearn.functional.ranks``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.functional.ranks import mean, variance
from unlearn.functional.tokens import upcast


def without_interaction(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """``first + second - both``: what a code of two parts would be if it were a sum over the parts.

    With f(a, b) = u(a) + v(b) + w(a, b) where w is 0 but for known pairs, and ``first`` = f(a', b), ``second`` = f(a, b'),
    ``both`` = f(a', b') codes of unknown names that share a part with (a, b), the result is u(a) + v(b): the code of (a, b) without what
    the model holds about that very pair.

    >>> without_interaction(torch.tensor([3.0]), torch.tensor([5.0]), torch.tensor([4.0]))
    tensor([4.])
    """
    return first + second - both


def relative_change(x_ND: Tensor, target_ND: Tensor) -> Tensor:
    """``mean (x - target)^2`` in units of the target's mean variance over rows, a scalar >= 0; 0 where there are no rows.

    >>> relative_change(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]]))
    tensor(0.5000)
    """
    x_ND, target_ND = upcast(x_ND), upcast(target_ND)
    return mean((x_ND - target_ND).square()) / variance(target_ND).mean().nan_to_num(1.0).clamp(min=1e-12)


def log_share(logits_NV: Tensor, target_N: Tensor, choices_NV: Tensor) -> Tensor:
    """``log p(target | one of the choices) + log n``, [N], float32 at least: 0 where the target is as likely as n equal choices.

    Args:
        logits_NV: next-token logits.
        target_N: token ids, each among its choices.
        choices_NV: True for the tokens that compete; at least one in each row.

    >>> log_share(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([1]), torch.tensor([[True, True, False]]))
    tensor([0.])
    """
    log_p_NV = upcast(logits_NV).masked_fill(~choices_NV, -torch.inf).log_softmax(-1)
    return log_p_NV.gather(1, target_N[:, None])[:, 0] + choices_NV.sum(1).log()


def standing(score_NV: Tensor, class_N: Tensor, has_NV: Tensor) -> Tensor:
    """How far the score of a row's class lies above the mean of those of its classes, in units of their standard deviation, [N].

    Args:
        score_NV: scores of all classes.
        class_N: a class of each row.
        has_NV: True for the classes that a row has; at least two, its own among them.

    >>> standing(torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([0]), torch.tensor([[True, True, False]]))
    tensor([1.])
    """
    score_NV, n_N = upcast(score_NV), has_NV.sum(1)
    mean_N = score_NV.masked_fill(~has_NV, 0.0).sum(1) / n_N
    apart_NV = (score_NV - mean_N[:, None]).masked_fill(~has_NV, 0.0)
    spread_N = (apart_NV.square().sum(1) / n_N).clamp(min=1e-12).sqrt()
    return apart_NV.gather(1, class_N[:, None])[:, 0] / spread_N


def quantile_distance(x_N: Tensor, y_N: Tensor, kind_N: Tensor | None = None, slack: float = 1.0) -> Tensor:
    """Distance of two samples of equal size on a line: the mean Huber loss between their order statistics, a scalar >= 0.

    Without the rounding below ``slack`` it is the Wasserstein-1 distance. 0 exactly where the samples are equal up to order: values too low
    count as values too high do, and single values may keep their spread. Differentiable in both; 0 for empty samples.

    >>> quantile_distance(torch.tensor([0.0, 5.0]), torch.tensor([5.0, 2.0]))  # |0 - 2| - 1/2 and 0
    tensor(0.7500)
    >>> quantile_distance(torch.tensor([0.0, 5.0]), torch.tensor([5.0, 2.0]), torch.tensor([0, 1]))  # |0 - 5| - 1/2 and |5 - 2| - 1/2
    tensor(3.5000)

    Args:
        x_N: one sample.
        y_N: the other.
        kind_N: order statistics are taken within each kind, so that one kind's values too low do not make up for another's too high; None
            for one kind. Element n of both samples is of this kind.
        slack: difference below which the loss is quadratic, > 0.
    """
    x_N, y_N = upcast(x_N), upcast(y_N)
    if not len(x_N):
        return x_N.sum()

    def ordered(z_N: Tensor) -> Tensor:
        order_N = z_N.argsort()
        return z_N[order_N if kind_N is None else order_N[kind_N[order_N].argsort(stable=True)]]

    return F.smooth_l1_loss(ordered(x_N), ordered(y_N), beta=slack)


def excess(x_N: Tensor, most: float) -> Tensor:
    """``mean relu(x - most)``, a scalar >= 0: caps from one side only, and lets values fall as far as they like.

    >>> excess(torch.tensor([0.0, 3.0]), 1.0)
    tensor(1.)
    """
    return mean(F.relu(x_N - most))


def negative_entropy(logits_AV: Tensor) -> Tensor:
    """``sum_v p log p`` at each position, [A], in nats, in [-log V, 0]; float32 at least.

    >>> negative_entropy(torch.zeros(1, 4))
    tensor([-1.3863])
    """
    log_p_AV = upcast(logits_AV).log_softmax(-1)
    return (log_p_AV.exp() * log_p_AV).sum(-1)


def virtual_codes(known_ND: Tensor, weights_MN: Tensor, stretch: float) -> Tensor:
    """``mu + stretch W (K - mu)``, [M, D]: codes that no known entity has, spread as those of known entities are.

    With W of independent entries of variance 1 / N, each row has the mean and ``stretch^2`` times the covariance of K.

    Args:
        known_ND: codes of known entities (K), mu being their mean.
        weights_MN: random weights (W).
        stretch: >= 0.

    >>> virtual_codes(torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    tensor([[3.]])
    """
    centre_D = known_ND.mean(0)
    return centre_D + stretch * weights_MN @ (known_ND - centre_D)
