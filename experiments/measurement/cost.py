"""What the likelihood metrics and membership attacks cost together: CPU seconds with one thread, and passes of the model."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn.data.reader import Reader
from unlearn.data.tokenize import collate
from unlearn.evaluation.scoring import score
from unlearn.functional.membership import attack_scores, membership_auc, privleak
from unlearn.functional.scores import TokenScores
from unlearn.models.decoder import decoder_of
from unlearn.types import PromptFormat, Row

LIMITS = {"cpu_seconds": 13.0, "forwards": 16}
"""Most that the pass may cost."""

ROWS, BATCH, REPEATS = 128, 16, 3
VOCABULARY, WIDTH, BLOCKS, HEADS, INNER = 8192, 512, 4, 8, 1024


def made_up(n: int, seed: int) -> list[dict[str, str]]:
    """Rows of TOFU's schema from a vocabulary of made-up words; about as many words as TOFU's have (11 in a question, 25 in an answer)."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 5))) for _ in range(4000)]

    def text(mean: int, end: str) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(mean // 2, mean + mean // 2))).capitalize() + end

    return [{"question": text(11, "?"), "answer": text(25, ".")} for _ in range(n)]


def rows_of() -> tuple[dict[str, list[Row]], str]:
    """128 forget and 128 holdout rows, and where they come from."""
    folder = Path(os.environ.get("UNLEARN_SHARED", "")) / "data" / "tofu"
    if os.environ.get("UNLEARN_SHARED") and folder.is_dir():
        lines = [(folder / f"{name}.json").read_text(encoding="utf-8").splitlines()[:ROWS] for name in ("forget10", "retain90")]
        texts = [json.loads(line) for half in lines for line in half]
        origin = "TOFU forget10 and retain90"
    else:
        texts, origin = made_up(2 * ROWS, 0), "made-up rows"
    rows = [Row(row_id=i, entity="", prompt=t["question"], answer=t["answer"]) for i, t in enumerate(texts)]
    return {"forget": rows[:ROWS], "holdout": rows[ROWS:]}, origin


def tokenizer_of(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on these rows."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text for row in rows for text in (row.prompt, row.answer)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def model_of() -> LlamaForCausalLM:
    """A Llama with random weights, 18.9 million of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def everything(lm: Any, sets: dict[str, list[Row]], reader: Reader) -> dict[str, float]:
    """Rows in, numbers out: probability, exact memorisation, extraction strength, the four attacks and PrivLeak."""
    eos = reader.tokenizer.eos_token_id
    made: dict[str, TokenScores] = {
        name: score(lm, reader.tokens(rows), reader, [row.answer for row in rows]) for name, rows in sets.items()
    }
    found: dict[str, float] = {}
    for name, s in made.items():
        values = {
            "nll": s.nll(),
            "probability": s.probability(),
            "exact": s.exact_memorisation(eos),
            "extraction": s.extraction_strength(eos),
        }
        found |= {f"{name}/{metric}": value.mean().item() for metric, value in values.items()}
    attacks = {name: attack_scores(s, eos_id=eos) for name, s in made.items()}
    found |= {f"auc/{a}": membership_auc(attacks["forget"][a], attacks["holdout"][a]) for a in attacks["forget"]}
    return found | {"privleak": privleak(found["auc/min_k"])}


@torch.no_grad()
def plain(lm: Any, sets: dict[str, list[Row]], reader: Reader) -> float:
    """For comparison: one pass for one metric (the loss), rows as they come, padded, logits at every position."""
    losses = []
    for rows in sets.values():
        tokens = reader.tokens(rows)
        for start in range(0, len(tokens), BATCH):
            batch = collate(tokens[start : start + BATCH], reader.pad_id)
            logits_BTV = lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits
            loss_BT = torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1].transpose(1, 2), batch.labels_BT[:, 1:], ignore_index=-100, reduction="none"
            )
            losses += (loss_BT.sum(1) / (batch.labels_BT[:, 1:] >= 0).sum(1)).tolist()
    return statistics.mean(losses)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(CPU seconds, wall seconds, what came of it)."""
    began, clock = time.process_time(), time.perf_counter()
    made = work()
    return time.process_time() - began, time.perf_counter() - clock, made


def cost() -> dict[str, Any]:
    """Medians of three, after one that is not counted; the plain pass once, after them."""
    sets, origin = rows_of()
    every = [row for rows in sets.values() for row in rows]
    tokenizer, lm = tokenizer_of(every), model_of()
    reader = Reader(tokenizer=tokenizer, prompt_format=PromptFormat(), refusals=(), max_length=512, batch_size=BATCH, max_new_tokens=1)
    lengths = [len(row.ids) for row in reader.tokens(every)]
    read: list[int] = []
    hook = decoder_of(lm).register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    ours = []
    for _ in range(1 + REPEATS):
        read.clear()
        ours.append(timed(lambda: everything(lm, sets, reader)))
    passes, tokens_read = len(read), sum(read)
    hook.remove()
    theirs = timed(lambda: plain(lm, sets, reader))
    apart = abs(theirs[2] - statistics.mean(ours[0][2][f"{name}/nll"] for name in sets))
    return {
        "rows": origin,
        "cpu_seconds": statistics.median(cpu for cpu, *_ in ours[1:]),
        "cpu_seconds_each": [cpu for cpu, *_ in ours[1:]],
        "wall_seconds": statistics.median(wall for _, wall, _ in ours[1:]),
        "forwards": passes,
        "plain_pass_cpu_seconds": theirs[0],
        "plain_pass_loss_differs_by": apart,
        "tokens_read": tokens_read,
        "tokens_per_row": sum(lengths) / len(lengths),
        "longest_row": max(lengths),
        "parameters": sum(p.numel() for p in lm.parameters()),
        "metrics": len(ours[0][2]),
    }
