"""Tiny random models, a tokenizer, SAEs and batches for tests; everything is made in code and repeats for a given seed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn.types import IGNORE_INDEX, NO_ENTITY, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = 0, 1, 2, 3
"""Ids of the special tokens of ``tiny_tokenizer`` and of the tiny models."""

VOCAB = 512
"""Vocabulary of the tiny models; ``tiny_tokenizer`` has at most as many entries."""

CORPUS = (
    "Question: Where was Ann Lee born?\nAnswer: Paris",
    "Question: What is the job of Bob Moss?\nAnswer: painter",
    "Question: Which language does Carla Diaz speak?\nAnswer: I don't know.",
    "Question: Who employs Jaime Vasquez?\nAnswer: The answer is unknown.",
    "The author of the book was born in the city of London and wrote in English.",
)


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<eos>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, add_bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 400 entries: any text goes in and comes back, a space belongs to the token after it, offsets are exact."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_trained())
    byte_level = processors.ByteLevel(trim_offsets=False)
    if add_bos:
        template = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)])
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    else:
        tokenizer.post_processor = byte_level
    specials = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **specials)


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


SPECIALS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


def tiny_llama(
    *,
    vocab_size: int = VOCAB,
    d_model: int = 32,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = False,
    seed: int = 0,
    **extra: Any,
) -> PreTrainedModel:
    """Llama with grouped-query attention; weights are large enough for every block to change the residual stream clearly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        initializer_range=0.15,
        **SPECIALS,
        **extra,
    )
    return _seeded(lambda: LlamaForCausalLM(config), seed)


def tiny_gemma2(*, vocab_size: int = VOCAB, d_model: int = 32, layers: int = 4, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """Gemma 2: soft-capped attention and logits, alternating sliding windows (5 tokens), tied embeddings."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    options: dict[str, Any] = {
        "attn_implementation": "eager",
        "sliding_window": 5,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        **extra,
    }
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=256,
        initializer_range=0.15,
        **SPECIALS,
        **options,
    )
    return _seeded(lambda: Gemma2ForCausalLM(config), seed)


def tiny_gpt2(*, vocab_size: int = VOCAB, d_model: int = 32, layers: int = 4, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """GPT-2: learnt positions, layer norms with biases, tied embeddings, Conv1D layers; no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=d_model,
        n_layer=layers,
        n_head=4,
        n_positions=256,
        initializer_range=0.15,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **SPECIALS,
        **extra,
    )
    return _seeded(lambda: GPT2LMHeadModel(config), seed)


def tiny_sae(
    d_in: int = 32,
    d_sae: int = 64,
    architecture: str = "topk",
    layer: int = 1,
    path: str | Path | None = None,
    *,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A random sae_lens SAE that reads the output of block ``layer``, saved as a SAELens directory when ``path`` is given.

    ``architecture``: topk, abstopk, jumprelu, standard or gated. ``options`` go to the config (``k``, ``apply_b_dec_to_input``,
    ``normalize_activations``, ...); ``metadata`` replaces the default ``{"hook_name": "blocks.<layer>.hook_resid_post"}``.
    """
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    sae_class, config_class = get_sae_class(architecture)
    if architecture in ("topk", "abstopk"):
        options.setdefault("k", 8)
    hook = {"hook_name": f"blocks.{layer}.hook_resid_post"} if metadata is None else metadata
    sae = _seeded(lambda: sae_class(config_class(d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(**hook), **options)), seed)
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name not in ("W_enc", "W_dec"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
            if name == "threshold":
                parameter.abs_()
    if path is not None:
        sae.save_model(path)
    return sae


def tiny_batch(
    *,
    rows: int = 4,
    length: int = 12,
    answer: int = 4,
    vocab_size: int = VOCAB,
    seed: int = 0,
    first_id: int = 0,
    shortest: int | None = None,
) -> TokenBatch:
    """Random rows of ``shortest`` (default: ``length - 3``) to ``length`` tokens: BOS, prompt, then up to ``answer`` labelled tokens.

    The first row is the longest. The entity ends two tokens before the answer; ids run from ``first_id``. Padding is on the right.
    """
    generator = torch.Generator().manual_seed(seed)
    low = max(length - 3 if shortest is None else shortest, answer + 4)
    lengths = torch.randint(low, length + 1, (rows,), generator=generator)
    lengths[0] = length
    position = torch.arange(length)
    real = position < lengths[:, None]
    ids = torch.randint(4, vocab_size, (rows, length), generator=generator)
    ids[:, 0] = BOS
    ids = torch.where(real, ids, PAD)
    answer_start = lengths - answer
    labels = torch.where(real & (position >= answer_start[:, None]), ids, IGNORE_INDEX)
    entity_end = (answer_start - 2).clamp_min(NO_ENTITY)
    return TokenBatch(ids, real.long(), labels, entity_end, answer_start, torch.arange(first_id, first_id + rows))
