"""How deep forgetting goes: activation patching against the original model, and what each layer would say.

Unlearning depth score, after the description of UDS (activation patching with a retain model): the original model reads question and
answer; at one layer its hidden states where the answer is predicted are replaced by those of another model that read the same tokens. The
fall of the answer's log-probability says how much of the answer is missing at that layer in the other model. With the gold model as the
other one this finds the layers that carry the knowledge; with the unlearned model it says how much of it is gone there. Where there is no
gold model, the original model itself reads the same question about an entity it does not know ("entity swap"). That is a weaker
yardstick: a model that answers such questions about strangers with "unknown" says so in its last blocks, which then carry nearly all the
weight, and training to refuse looks deep. Read the falls per layer beside the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.data.tokenize import batches
from unlearn.errors import DataError
from unlearn.evaluation.shard import spread
from unlearn.functional.tokens import answer_positions, answer_targets
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import blocks_of, device_of, evaluating, final_norm, head
from unlearn.models.edit import edited
from unlearn.models.forward import final_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.data.tokenize import TokenRow
    from unlearn.types import TokenBatch

THRESHOLD = 0.05
"""A layer carries knowledge when patching it costs the answer more than this, in nats per token."""


@dataclass(frozen=True)
class Depth:
    """Falls of the answer's log-probability in nats per token when a layer is patched, and their summary.

    ``score`` in [0, 1]: 0 when everything is where it was, 1 when the model is as the reference; nan where no layer carries the knowledge.
    ``reference_L`` and ``model_L``: the fall at each layer with the reference and with the unlearned model patched in.
    """

    score: float
    reference_L: Tensor
    model_L: Tensor

    def results(self) -> dict[str, float]:
        """``forget/depth_score`` and the falls per layer."""
        found = {"forget/depth_score": self.score}
        for layer, (reference, model) in enumerate(zip(self.reference_L.tolist(), self.model_L.tolist(), strict=True)):
            found |= {f"forget/depth_reference@layer{layer}": reference, f"forget/depth_model@layer{layer}": model}
        return found


def depth_score(reference_L: Tensor, model_L: Tensor, threshold: float = THRESHOLD) -> float:
    """``sum_l D1_l clip(D2_l / D1_l, 0, 1) / sum_l D1_l`` over the layers with ``D1_l > threshold``; nan where there is none.

    Args:
        reference_L: fall of the answer's log-probability with the reference patched in (D1), nats per token, per layer.
        model_L: the same with the unlearned model patched in (D2).
        threshold: least fall of a layer that carries knowledge.

    >>> depth_score(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 0.5, 3.0]))
    0.875
    """
    carries_L = reference_L > threshold
    if not bool(carries_L.any()):
        return float("nan")
    d1, d2 = reference_L[carries_L], model_L[carries_L]
    return float((d1 * (d2 / d1).clamp(0, 1)).sum() / d1.sum())


def _moved(batch: TokenBatch, device: torch.device) -> TokenBatch:
    return type(batch)(*(t.to(device) for t in batch))


def _answer_states(lm: PreTrainedModel, batch: TokenBatch) -> dict[int, Tensor]:
    """Outputs of every block where the answer is predicted, [A, D] by layer."""
    row_A, pos_A = answer_positions(batch.labels_BT)
    hidden = capture_layers(lm, batch, range(len(blocks_of(lm))))
    return {layer: h[row_A, pos_A] for layer, h in hidden.items()}


def _logprobs(lm: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Log-probability of each answer token, [A]."""
    row_A, pos_A = answer_positions(batch.labels_BT)
    logprobs_AV = head(lm, final_hidden(lm, batch)[row_A, pos_A]).float().log_softmax(-1)
    return logprobs_AV.gather(1, answer_targets(batch.labels_BT)[:, None])[:, 0]


def _falls(full: PreTrainedModel, batch: TokenBatch, states: Mapping[int, Tensor]) -> Tensor:
    """Fall of the log-probability of each answer token when one layer's states are replaced, [L, A]."""
    row_A, pos_A = answer_positions(batch.labels_BT)
    before_A = _logprobs(full, batch)
    falls = []
    for layer in range(len(blocks_of(full))):

        def patch(hidden_BTD: Tensor, layer: int = layer) -> Tensor:
            return hidden_BTD.index_put((row_A, pos_A), states[layer].to(hidden_BTD))

        with edited(full, layer, patch):
            falls.append(before_A - _logprobs(full, batch))
    return torch.stack(falls)


def measure_depth(
    full: PreTrainedModel,
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    reader: Reader,
    *,
    gold: PreTrainedModel | None = None,
    swapped: Sequence[TokenRow] = (),
) -> Depth:
    """Patch the unlearned model, and the reference, into the original one.

    Args:
        full: the original model.
        model: the unlearned one.
        rows: questions about the target with their answers.
        reader: for the batch size and the padding token.
        gold: model that never saw the target; None takes ``swapped``.
        swapped: without a gold model, for each of ``rows`` the same question and answer with an unknown name.

    Raises:
        DataError: neither a gold model nor one swapped row (with the same answer tokens) for each row.
    """
    if gold is None and len(swapped) != len(rows):
        raise DataError(f"Depth must be measured against a gold model or one swapped row for each row ({len(rows)}); found {len(swapped)}.")
    device = device_of(full)

    def work(mine: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        out: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(mine)
        for index, cpu_batch in batches([rows[i] for i in mine], reader.batch_size, reader.pad_id):
            batch = _moved(cpu_batch, device)
            source = batch if gold is not None else _moved(_same(swapped, [mine[i] for i in index], reader), device)
            if source is not batch and not torch.equal(source.labels_BT[source.labels_BT >= 0], batch.labels_BT[batch.labels_BT >= 0]):
                raise DataError("A swapped row must have the answer tokens of its row; found others.")
            reference_LA = _falls(full, batch, _answer_states(full if gold is None else gold, source))
            model_LA = _falls(full, batch, _answer_states(model, batch))
            row_A, _ = answer_positions(batch.labels_BT)
            for place, i in enumerate(index):
                out[i] = (reference_LA[:, row_A == place].cpu().double(), model_LA[:, row_A == place].cpu().double())
        return out

    with evaluating(full), evaluating(model):
        parts = spread(range(len(rows)), work)
    reference_L, model_L = (torch.cat([part[side] for part in parts], dim=1).mean(1) for side in (0, 1))
    return Depth(depth_score(reference_L, model_L), reference_L, model_L)


def _same(rows: Sequence[TokenRow], places: Sequence[int], reader: Reader) -> TokenBatch:
    from unlearn.data.tokenize import collate

    return collate([rows[i] for i in places], reader.pad_id)


def lens_logits(lm: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Logit lens (nostalgebraist 2020): what final norm and head make of a block's output, [N, V] in fp32."""
    return head(lm, final_norm(lm)(hidden_ND)).float()


def lens_ranks(lm: PreTrainedModel, rows: Sequence[TokenRow], reader: Reader) -> dict[str, float]:
    """``forget/lens_rank@layer<l>``: median rank of the answer's first token, 0 the best, in ``lens_logits`` of the output of block ``l``
    at the last prompt token."""
    device = device_of(lm)
    n_blocks = len(blocks_of(lm))

    def work(mine: Sequence[TokenRow]) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in mine]
        for index, cpu_batch in batches(mine, reader.batch_size, reader.pad_id):
            batch = _moved(cpu_batch, device)
            first_B = batch.input_ids_BT.gather(1, batch.answer_start_B[:, None])
            hidden = capture_layers(lm, batch, range(n_blocks), batch.answer_start_B - 1)
            for layer in range(n_blocks):
                logits_BV = lens_logits(lm, hidden[layer])
                rank_B = (logits_BV > logits_BV.gather(1, first_B)).sum(1)
                for place, rank in zip(index, rank_B.tolist(), strict=True):
                    out[place].append(rank)
        return out

    with evaluating(lm):
        ranks = torch.tensor(spread(rows, work)).double()
    return {f"forget/lens_rank@layer{layer}": float(ranks[:, layer].median()) for layer in range(n_blocks)}
