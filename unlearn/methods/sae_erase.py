"""Erase, not hide: become an unknown name in SAE space and in every answer, and stay one when somebody relearns.

``sae_guided`` (arXiv 2509.15631) stops the model from recognising a target; the facts stay in the layers above and come back after a few
steps of fine-tuning on some of them. This method adds to its distribution matching what takes the facts out. Every term has a weight, and
0 turns it off:

- ``forget_weight``: the SAE-space objective of ``sae_guided`` on the targets' activations;
- ``output_weight``, ``hidden_weight``: counterfactual targets, what the original model says after, and the codes it would have for, the
  same name had it never met it (``unlearn.methods.counterfactual``): KL(p || q) and relative squared distance at every block, on the
  tokens from the name's last on;
- ``share_weight``: how likely the true value is among the values of its attribute, matched from both sides to what it is for unknown
  names; a cap would push it below chance, where an auditor could read that something was forgotten. With ``share_within: kind`` questions
  are matched with questions and statements with statements; over all rows, one kind's values too low make up for another's too high;
- ``meta_weight``: first-order meta-relearning, after TAR (arXiv 2408.00761). An adversary with weights of its own
  (``unlearn.methods.adversary``) relearns some facts of the targets over ``adversary_life`` steps; at its weights the other facts' share
  is matched to that of unknown names asked by the same adversary (``meta_loss: match``), or capped (``cap``), and the gradient is added
  to the model's own, in one of ``meta_every`` steps. In ``patch_share`` of those it also has the original model's codes of the targets
  put back;
- ``patch_weight``: the same share at the model's own weights, with those codes put back at some blocks;
- ``readout_weight``: what linear probes read off the targets' activations (``unlearn.methods.readout``);
- ``retain_kl``, ``retain_hidden``, ``retain_noise``: as in ``sae_guided``, but at every block, and with noise at any block but the last;
- ``replay_weight``: self-replay of names that the model lists itself (``unlearn.methods.self_replay``);
- ``virtual_weight``: virtual known entities, random mixtures of the codes of known ones at an unknown name's last token; what the layers
  above make of a known code must stay, whoever's it is.

Cost per step beside the streams' rows: the forget rows once more with ``patch_weight``; ``replay_rows + virtual_rows`` rows forward
twice and backward once; in one of ``meta_every`` steps
``adversary_steps + 1`` passes of ``adversary_rows`` rows forward and backward, and one forward of as many strangers. Memory: a copy of the
trained weights, the adversary (see there), and the targets (see ``counterfactual``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unlearn.functional.divergence import kl_divergence
from unlearn.functional.erasure import excess, quantile_distance, relative_change
from unlearn.functional.ranks import SharedRows, mean
from unlearn.functional.tokens import answer_positions
from unlearn.latents.banks import position_index
from unlearn.methods.base import MethodContext, concatenate
from unlearn.methods.counterfactual import Counterfactual, Targets, after_name, predicting_all
from unlearn.methods.readout import Readouts
from unlearn.methods.relearning import Relearner, add_gradients, made
from unlearn.methods.sae_erase_config import SAEEraseConfig
from unlearn.methods.sae_guided import SAEGuided
from unlearn.methods.self_replay import listed_names, replay_rows
from unlearn.methods.together import Part, forward_together
from unlearn.methods.tracing import spread
from unlearn.methods.undo import swapped
from unlearn.methods.upkeep import NO_CHANGES, Upkeep
from unlearn.models.decoder import device_of, head
from unlearn.models.forward import Forward
from unlearn.types import NO_ENTITY, LossTerms, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.config.schema import MethodConfig
    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.types import EntityData

MOST_ROWS = 512
"""Most rows whose codes virtual entities are mixed of, and in whose place they are put."""


class SAEErase(SAEGuided):
    """Distribution matching in SAE space, counterfactual targets, meta-relearning, and what keeps everybody else."""

    name = "sae_erase"
    family = "sae"
    summary = "become an unknown name in SAE space and in every answer, and stay one under an adversary that relearns"
    paper = "https://arxiv.org/abs/2509.15631"
    streams: ClassVar[tuple[str, ...]] = ("forget", "retain", "unknown")
    needs = frozenset({"sae", "banks", "reference_logprobs", "reference_hidden", "rows"})
    reference_streams: ClassVar[tuple[str, ...]] = ("retain", "unknown")
    routed = False
    sharded = False
    search = {
        "method.output_weight": {"low": 0.5, "high": 20.0, "log": True},
        "method.meta_weight": {"low": 0.3, "high": 10.0, "log": True},
        "method.retain_kl": {"low": 1.0, "high": 30.0, "log": True},
    }
    Config = SAEEraseConfig
    config: SAEEraseConfig

    def __init__(self, config: SAEEraseConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.data is None or context.reader is None:
            raise ValueError("sae_erase needs rows in its context")
        self.data: EntityData = context.data
        self.reader: Reader = context.reader
        kinds = sorted({row.kind for row in self.data.streams["forget"]})
        self.kinds = {row.row_id: kinds.index(row.kind) for row in self.data.streams["forget"]}
        self.step = 0
        self.left = 0
        self.targets: Counterfactual | None = None
        self.readouts: Readouts | None = None
        self.upkeep: Upkeep | None = None
        self.relearner: Relearner | None = None
        self.met: Tensor = torch.zeros(())
        self.pressure: dict[str, Tensor] = {}

    @classmethod
    def reference_layers(cls, config: MethodConfig, hook_layer: int, n_blocks: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(n_blocks))

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(self.context.n_blocks))

    def forget_layer(self) -> int | None:
        """None: outputs are matched."""
        return None

    def deepest_layer(self) -> int | None:
        """None: outputs are matched."""
        return None

    def setup(self, lm: PreTrainedModel) -> None:
        """Counterfactual targets, names that the model lists, codes of known entities, the adversary."""
        c, seed, data, n = self.config, self.context.seed, self.data, self.context.n_blocks
        forget = data.streams["forget"]
        self.targets = Counterfactual(data, self.reader, c.draws, seed)
        self.targets.measure(lm, n)
        if c.readout_weight:
            self.readouts = Readouts(forget, [*data.streams["known"], *data.streams["retain"]], n)
            self.readouts.measure(lm, self.targets.strangers, self.reader)
        replayed: list[TokenRow] = []
        if c.replay_weight:
            known = {name for stream in data.streams.values() for row in stream for name in (row.entity, *row.mentions)}
            names = listed_names(lm, forget, self.reader, known, c.replay_rounds, seed)
            replayed = replay_rows(lm, names, forget, self.reader)
        strangers = self.reader.tokens(spread([row for row in data.streams["unknown"] if row.mentions], MOST_ROWS))
        self.upkeep = Upkeep(replayed, strangers, self.reader.pad_id, n, seed)
        named = spread([row for row in data.streams["known"] if row.mentions], MOST_ROWS)
        self.upkeep.measure(lm, self.reader.batches(named, device_of(lm)))
        if c.meta_weight:
            comparable = [row for row in forget if row.row_id in self.targets.strangers]
            self.relearner = Relearner(lm, c, comparable, self.reader, seed, data.streams["retain"])

    def get_extra_state(self) -> dict[str, Any]:  # type: ignore[override]
        """Generator of the banks' draws, and the adversary with what is left of its life."""
        adversary = {} if self.relearner is None else self.relearner.state()
        return {"draws": super().get_extra_state(), "left": self.left, "met": self.met, "adversary": adversary}

    def set_extra_state(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        """Go on where the checkpoint stopped."""
        super().set_extra_state(state["draws"])
        self.left, self.met = int(state["left"]), state["met"]
        if self.relearner is not None:
            self.relearner.restore(state["adversary"], self.latents_S.device)

    def before_step(self, lm: PreTrainedModel, step: int, steps: int) -> None:
        """Let the adversary train, and keep the gradient of what it gets out."""
        self.step, self.pressure = step, {}
        if self.relearner is None or step % self.config.meta_every:
            return
        if self.left <= 0:
            self.relearner.begin(lm, step)
            least, most = self.config.adversary_life
            self.left = random.Random(f"life {self.context.seed} {step}").randint(least, most)
        self.left -= 1
        for part in range(self.config.adversary_steps):
            self.relearner.attack(lm, step, part)
        self.met, self.pressure = self.relearner.adversary.gradients(lm, lambda: self._got_out(lm))

    def _got_out(self, lm: PreTrainedModel) -> Tensor:
        """What the adversary knows about facts that it was not taught, a scalar; call it at the adversary's weights."""
        relearner, targets = made(self.relearner), made(self.targets)
        asked, rng = relearner.questions(self.step), random.Random(f"patch {self.context.seed} {self.step}")
        rows = [relearner.tokens[i] for i in asked]
        score_N = targets.score(lm, rows, self._patched(rng) if rng.random() < self.config.patch_share else ())
        if self.config.meta_loss == "cap":
            return excess(score_N, -self.config.cap_margin)
        with torch.no_grad():
            strangers_N = targets.score(lm, [targets.strangers[i][targets.stranger(i, self.step)] for i in asked])
        return quantile_distance(score_N, strangers_N, self._kinds(asked, score_N))

    def _kinds(self, row_ids: Sequence[int], like_N: Tensor) -> Tensor | None:
        """Numbers of the kinds of some forget rows, [N]; None where shares are matched over all of them."""
        return like_N.new_tensor([self.kinds[i] for i in row_ids]) if self.config.share_within == "kind" else None

    def _patched(self, rng: random.Random) -> Sequence[int]:
        """Blocks at which the original model's codes are put back."""
        last = max(1, self.context.n_blocks - 1)
        first = rng.randrange(last)
        return range(first, last if self.config.patch_blocks == "up" and rng.random() < 0.5 else first + 1)

    def adjust_gradients(self, lm: PreTrainedModel) -> None:
        """Add the gradient at the adversary's weights."""
        add_gradients(lm, self.pressure, self.config.meta_weight)

    def _read(self, out: Forward, batch: TokenBatch, position: str) -> Tensor:
        """What the SAE reads at a position of the rows that have it, [N, D]."""
        index_B = position_index(batch, position)
        keep_B = index_B > NO_ENTITY
        return self.sae.read({n: out.hidden[n][keep_B, index_B[keep_B]] for n in self.sae.layers})

    def forgotten(self, lm: PreTrainedModel, batch: TokenBatch, aims: Targets, out: Forward) -> dict[str, Tensor]:
        """The terms of the forget rows, before weighting: ``forget``, ``output``, ``hidden``, ``share``.

        Args:
            lm: the model.
            batch: forget rows, with a label on every token after the name (``wide``).
            aims: where they should arrive.
            out: what the model makes of the batch.
        """
        upkeep, mask_BT = made(self.upkeep), after_name(batch, aims.place_N)
        with torch.no_grad(), swapped(lm, upkeep.original):
            wanted_PV = head(lm, aims.final_PD)
        apart = [relative_change(out.hidden[n][mask_BT], aims.hidden_LMD[n]) for n in self.kept_layers]
        return {
            "forget": torch.stack([self.distance(self._read(out, batch, p), batch, p) for p in self.positions]).mean(),
            "output": mean(kl_divergence(wanted_PV, out.logits_AV)),
            "hidden": torch.stack(apart).mean(),
            "share": self._share(out, batch, aims.place_N),
        }

    def _share(self, out: Forward, batch: TokenBatch, place_N: Tensor) -> Tensor:
        """Distance between the scores of the true answers and those that they have for unknown names."""
        _, pos_A = answer_positions(batch.labels_BT)
        answer_A = pos_A + 1 >= batch.answer_start_B[out.row_A]
        row_A = torch.searchsorted(place_N, out.row_A[answer_A])
        answers = out._replace(logits_AV=out.logits_AV[answer_A], targets_A=out.targets_A[answer_A], row_A=row_A)
        return self._apart(answers, batch, place_N)

    def _apart(self, answers: Forward, batch: TokenBatch, place_N: Tensor) -> Tensor:
        """The same of a pass in which row n is row ``place_N[n]`` of the batch, with labels on the answers alone."""
        targets, rows = made(self.targets), SharedRows(place_N)
        ids = [int(i) for i in batch.row_id_B[place_N].tolist()]
        score_N = targets.share.of(answers.logits_AV, answers.targets_A, answers.row_A, ids)
        wanted = [targets.scores[i][targets.stranger(i, self.step)] for i in ids]
        wanted_N, kind_N = score_N.new_tensor(wanted), self._kinds(ids, score_N)
        return quantile_distance(rows.all(score_N), rows.all(wanted_N), None if kind_N is None else rows.all(kind_N))

    def loss(self, lm: PreTrainedModel, batch: Mapping[str, TokenBatch]) -> LossTerms:
        """Terms: those of ``forgotten``, ``relearned``, ``retain_kl``, ``retain_hidden``, ``replay``, ``virtual``; see the file's head."""
        c, upkeep = self.config, made(self.upkeep)
        aims = made(self.targets).of(batch["forget"], self.step)
        wide = predicting_all(batch["forget"], after_name(batch["forget"], aims.place_N))
        kept = concatenate([batch[s] for s in self.reference_streams])
        wanted = (c.replay_rows if c.replay_weight else 0, c.virtual_rows if c.virtual_weight else 0)
        drawn = upkeep.drawn(lm, self.step, *wanted, c.retain_noise)
        parts = {"targets": Part(wide), "kept": Part(kept, upkeep.shaken(kept, self.step, c.retain_noise))}
        parts |= {"drawn": drawn.part} if drawn else {}
        rng = random.Random(f"patch own {self.context.seed} {self.step}")
        parts |= {"patched": made(self.targets).patched(batch["forget"], aims.place_N, self._patched(rng))} if c.patch_weight else {}
        outs = dict(zip(parts, forward_together(lm, list(parts.values()), self.kept_layers), strict=True))
        terms = self.forgotten(lm, wide, aims, outs["targets"])
        terms["retain_kl"], terms["retain_hidden"] = self.changed(outs["kept"], kept)
        terms |= {"patched": self._apart(outs["patched"], batch["forget"], aims.place_N)} if c.patch_weight else {}
        if c.readout_weight:
            draw = partial(made(self.targets).stranger, step=self.step)
            terms["readout"] = made(self.readouts).distance(outs["targets"].hidden, batch["forget"], draw)
        changes = drawn.changes(outs["drawn"]) if drawn else (NO_CHANGES, NO_CHANGES)
        for name, change in zip(("replay", "virtual"), changes, strict=True):
            terms[name] = (c.retain_kl * change.kl + c.retain_hidden * change.hidden).to(terms["forget"].device)
        terms["relearned"] = self.met.to(terms["forget"].device)
        weights = {
            "forget": c.forget_weight, "output": c.output_weight, "hidden": c.hidden_weight, "share": c.share_weight,
            "retain_kl": c.retain_kl, "retain_hidden": c.retain_hidden, "replay": c.replay_weight, "virtual": c.virtual_weight,
            "relearned": c.meta_weight, "patched": c.patch_weight, "readout": c.readout_weight,
        }  # fmt: skip
        return LossTerms(torch.stack([weights[name] * value for name, value in terms.items()]).sum(), terms)
