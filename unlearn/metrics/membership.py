"""Membership inference: can it be told that the forget rows were trained on?"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from unlearn.errors import ConfigError
from unlearn.functional.membership import ATTACKS, attack_score, membership_auc, privleak, rel_diff
from unlearn.functional.scores import TokenScores
from unlearn.metrics.lists import joined


class MembershipAuc(Metric):
    """Area under the ROC curve of a membership attack, in [0, 1]: ``unlearn.functional.membership.membership_auc``.

    1: the forget rows are plainly memorised; 0.5: they look like held-out rows. The goal is the value on a model that never saw them, so
    neither direction is better. nan while there are no rows of either side.

    Args:
        attack: one of ``unlearn.functional.membership.ATTACKS``, or ``gradnorm``, whose scores ``unlearn.evaluation.gradnorm`` gives.
        k: share of lowest tokens that Min-K% and Min-K%++ look at, in (0, 1].
        eos_id: tokens of this id are left out of Min-K% and Min-K%++.
        compat: leave out the last token of each row instead, as open-unlearning does.

    >>> metric = MembershipAuc("loss")
    >>> metric.update(torch.tensor([0.1, 0.2, 0.9]), holdout=False)
    >>> metric.update(torch.tensor([0.5, 1.0, 2.0]), holdout=True)
    >>> metric.compute()
    tensor(0.8889)
    """

    full_state_update: bool = False
    is_differentiable: bool = False
    higher_is_better: None = None
    key: ClassVar[str] = "membership_auc"

    def __init__(self, attack: str = "min_k", k: float = 0.4, eos_id: int | None = None, compat: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if attack not in (*ATTACKS, "gradnorm"):
            raise ConfigError(f"attack must be one of {', '.join(ATTACKS)}, gradnorm; found {attack!r}.")
        if not 0 < k <= 1:
            raise ConfigError(f"k must be in (0, 1]; found {k}.")
        self.attack = attack
        self.k = k
        self.eos_id = eos_id
        self.compat = compat
        variant = f"{attack}_{k}_{eos_id}_{compat}".replace(".", "_")
        self._sides = (f"forget_{variant}", f"holdout_{variant}")
        for side in self._sides:
            self.add_state(side, default=[], dist_reduce_fx="cat")

    def update(self, scores: TokenScores | Tensor, holdout: bool, reference_nll_B: Tensor | None = None) -> None:
        """Count in one batch.

        Args:
            scores: what the pass over the rows gave, or finished scores of the attack ``[B]``, low for a member.
            holdout: whether the rows were never trained on; else they are forget rows.
            reference_nll_B: loss of each row on a model that never saw the forget rows, for the attack ``reference``.

        Raises:
            ConfigError: gradient norms asked of a pass that has none.
            DataError: the attack lacks texts or reference losses.
        """
        if not isinstance(scores, Tensor):
            if self.attack == "gradnorm":
                raise ConfigError("attack gradnorm takes gradient norms, one per row; found the scores of a forward pass.")
            scores = attack_score(scores, self.attack, k=self.k, reference_nll_B=reference_nll_B, eos_id=self.eos_id, compat=self.compat)
        getattr(self, self._sides[int(holdout)]).append(scores.detach().to(self.device, self.dtype))

    def _auc(self) -> float:
        forget, holdout = (joined(getattr(self, side)) for side in self._sides)
        return membership_auc(forget, holdout)

    def compute(self) -> Tensor:
        """The area, a scalar."""
        return torch.tensor(self._auc(), dtype=self.dtype, device=self.device)


class _AgainstReference(MembershipAuc):
    """A membership area set against the area that the same attack has on a retain model."""

    def __init__(self, reference_auc: float = 0.5, attack: str = "min_k", **kwargs: Any) -> None:
        super().__init__(attack, **kwargs)
        if not 0 <= reference_auc <= 1:
            raise ConfigError(f"reference_auc must be in [0, 1]; found {reference_auc}.")
        self.reference_auc = reference_auc


class PrivLeak(_AgainstReference):
    """PrivLeak in percent, 0 is the goal: ``unlearn.functional.membership.privleak``.

    Args:
        reference_auc: area of the same attack on a retain model, in [0, 1]; 0.5 stands in for it.
        attack: as for ``MembershipAuc``, whose other options are taken too. MUSE: ``min_k`` with k = 0.4.

    >>> metric = PrivLeak(attack="loss")
    >>> metric.update(torch.tensor([0.1, 0.2, 0.3]), holdout=False)
    >>> metric.update(torch.tensor([0.5, 1.0]), holdout=True)
    >>> metric.compute()
    tensor(-100.)
    """

    key: ClassVar[str] = "privleak"

    def compute(self) -> Tensor:
        """PrivLeak, a scalar."""
        return torch.tensor(privleak(self._auc(), self.reference_auc), dtype=self.dtype, device=self.device)


class MembershipRelDiff(_AgainstReference):
    """Difference of a membership area to a retain model's, in percent of that, 0 is the goal: ``unlearn.functional.membership.rel_diff``.

    Arguments as for ``PrivLeak``.

    >>> metric = MembershipRelDiff(attack="loss")
    >>> metric.update(torch.tensor([0.1, 0.2, 0.3]), holdout=False)
    >>> metric.update(torch.tensor([0.5, 1.0]), holdout=True)
    >>> metric.compute()
    tensor(100.)
    """

    key: ClassVar[str] = "membership_rel_diff"

    def compute(self) -> Tensor:
        """The difference, a scalar."""
        return torch.tensor(rel_diff(self._auc(), self.reference_auc), dtype=self.dtype, device=self.device)
