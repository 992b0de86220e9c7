"""The full evaluation at the end of training, and sample answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from unlearn.evaluation.answers import entity_accuracies

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.evaluation.suite import Measurement, Suite
    from unlearn.module import UnlearningModule
    from unlearn.tracking.rundir import RunDirectory
    from unlearn.types import Row

SAMPLE_SETS = ("forget_paraphrased", "forget", "retain_unseen", "retain", "unknown")


def sample_rows(evaluation: Mapping[str, Sequence[Row]], n: int) -> list[tuple[str, int]]:
    """``n`` fixed (set, index) pairs: half from the forget sets, the rest from the others, spread over the entities.

    The choice depends on the data alone, so that every run of a study shows the same prompts.
    """
    sets = [name for name in SAMPLE_SETS if evaluation.get(name)] or list(evaluation)
    forget = [name for name in sets if name.startswith("forget")][:1]
    others = [name for name in sets if not name.startswith("forget")] or forget
    share = dict.fromkeys(sets, 0)
    for i in range(n):
        pool = forget if forget and i < (n + 1) // 2 else others
        share[pool[i % len(pool)]] += 1
    picked = []
    for name, k in share.items():
        total = len(evaluation[name])
        picked += [(name, index) for index in sorted({round(j * (total - 1) / max(1, k - 1)) for j in range(min(k, total))})]
    return picked


def sample_answers(
    evaluation: Mapping[str, Sequence[Row]], n: int, measured: Measurement, base: Measurement | None = None
) -> list[dict[str, str]]:
    """``n`` prompts {set, entity, prompt, reference, before, after}; without a base there is no ``before``."""
    rows = []
    for name, index in sample_rows(evaluation, n):
        row = evaluation[name][index]
        before = {} if base is None else {"before": base.texts[name][index]}
        prompt = {"set": name, "entity": row.entity, "prompt": row.prompt, "reference": row.answer}
        rows.append({**prompt, **before, "after": measured.texts[name][index]})
    return rows


class Evaluation(Callback):
    """Measures everything when training ends and writes ``results.json``, ``entities.json`` and ``samples.jsonl``.

    Result keys (listed in ``unlearn.evaluation``): ``forget/*``, ``retain/*``, ``unknown/*``, ``generic/*``, ``latent/*``, ``collapse/*``.
    """

    def __init__(self, suite: Suite, run: RunDirectory, samples: int) -> None:
        """Measure with ``suite``, write to ``run``, keep ``samples`` prompts."""
        self.suite, self.run, self.samples = suite, run, samples
        self.measured: Measurement | None = None

    def measure(self, lm: PreTrainedModel) -> None:
        """Measure ``lm`` and write what was found."""
        self.measured = self.suite.measure(lm)
        self.measured.results.update(self.suite.deep(lm))
        self.write(self.measured)

    @rank_zero_only
    def write(self, measured: Measurement) -> None:
        """Write results and samples of ``measured`` beside the original model's answers."""
        base = self.suite.base
        if base is None:
            raise ValueError("measure_base has to run before the evaluation")
        self.run.write_results(self.suite.final(measured))
        self.run.write_entities(entity_accuracies(self.suite.data.evaluation, measured.texts))
        rows = sample_answers(self.suite.data.evaluation, self.samples, measured, base)
        self.run.samples_path.unlink(missing_ok=True)
        self.run.append_samples(rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the final weights and measure the final model, unless training stopped early."""
        if trainer.global_step >= trainer.max_steps:
            self.conclude(pl_module)

    def conclude(self, module: UnlearningModule) -> None:
        """Bring the model to its final form, write what was trained to ``weights.safetensors``, and measure."""
        module.conclude()
        self.keep(module.final_state())
        self.measure(module.lm)

    @rank_zero_only
    def keep(self, state: dict[str, Tensor]) -> None:
        """Write the final weights; nothing where nothing was trained."""
        if state:
            self.run.write_weights(state)
