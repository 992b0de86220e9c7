"""Stripping: a method that acts while the model runs leaves the weights as they were; whoever has the weights asks those.

Filters, steering and clamped features stand or fall with who runs the model: Thaker et al., "Guardrail Baselines for Unlearning in LLMs"
(arXiv 2403.03329), name that as their limit. Nothing is searched or trained here: the weights are loaded without what acts on them and
asked, one cell. For methods that change the weights there is nothing to strip.
"""

from __future__ import annotations

from unlearn.attacks.asking import ask
from unlearn.attacks.base import Attack, AttackContext, Outcome, outcome


class Strip(Attack):
    """The weights without what acts on them at inference."""

    name = "strip"
    summary = "asks the weights without what acts on them while the model runs"
    paper = "https://arxiv.org/abs/2403.03329"
    quick = {}

    def missing(self, context: AttackContext) -> str | None:
        """A method that acts at inference."""
        return None if context.bare is not None else "a method that acts at inference"

    def run(self, context: AttackContext) -> Outcome:
        """Ask both sides' questions once.

        Raises:
            ValueError: the method does not act at inference (``missing`` says so).
        """
        if context.bare is None:
            raise ValueError("strip needs a method that acts at inference")
        lm = context.bare()
        hits = [ask(lm, facts.test, context.reader) for facts in (context.target, context.control)]
        context.tick(1.0)
        return outcome(context, ["bare"], hits[:1], hits[1:])
