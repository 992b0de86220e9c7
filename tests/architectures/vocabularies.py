"""Small tokenizers of the three families, trained on made-up text: byte fallback and word marks (Gemma), byte-level (Llama 3, GPT-2)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tests.architectures.shapes import VOCABULARY
from tests.architectures.texts import corpus

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Turns, roles and errors as Gemma 2's."""

LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' }}"
    "{{- system + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
"""Header, system part with its dates and turns as Llama 3.1's, without tools."""

LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
LLAMA_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _word_marks(size: int) -> tuple[list[str], list[list[str]]]:
    """(tokens, merges) of a BPE over words that start with the mark of a space."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), model["merges"]


def gemma_tokenizer(chat: bool) -> Any:
    """A ``GemmaTokenizer``: spaces as word marks, bytes as fallback, BOS, turns as special tokens."""
    from transformers import GemmaTokenizer

    turns = ["<start_of_turn>", "<end_of_turn>"]
    front = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens, merges = _word_marks(VOCABULARY - len(front) - 1)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*front, *tokens]))}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[tuple(m) for m in merges], additional_special_tokens=turns, add_bos_token=True)
    if chat:
        tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


@cache
def _byte_level(size: int, split: bool) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    words = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return str(tokenizer.to_str())


def llama_tokenizer(chat: bool) -> Any:
    """Byte-level BPE with Llama 3's word pattern; special tokens last, as there; no padding token."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_byte_level(VOCABULARY - len(LLAMA_SPECIALS), split=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in LLAMA_SPECIALS])
    bos = LLAMA_SPECIALS[0]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="<|eot_id|>" if chat else "<|end_of_text|>")
    if chat:
        made.chat_template = LLAMA_TEMPLATE
    return made


def gpt2_tokenizer() -> Any:
    """A ``GPT2Tokenizer``; one special token for everything."""
    from transformers import GPT2Tokenizer

    model = json.loads(_byte_level(VOCABULARY - 1, split=False))["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    return GPT2Tokenizer(vocab=vocabulary, merges=[tuple(m) for m in model["merges"]])


def tokenizer_for(kind: str, chat: bool) -> Any:
    """The tokenizer of a kind of model (gemma2, llama, gpt2); with a chat template for instruction-tuned ones."""
    return {"gemma2": gemma_tokenizer, "llama": llama_tokenizer, "gpt2": lambda chat: gpt2_tokenizer()}[kind](chat)
