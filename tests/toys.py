"""A whole run in small: rows about invented people, a random tiny model, an SAE, banks and references, made in a second."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.tiny import tiny_llama, tiny_sae, tiny_tokenizer
from unlearn.assembly import select_weights
from unlearn.config.schema import BatchConfig, EvaluationConfig, LatentsConfig, ModelConfig, SourceConfig
from unlearn.data.module import UnlearningDataModule
from unlearn.data.reader import Reader
from unlearn.data.swap import matched_rows
from unlearn.data.tokenize import TokenRow, batches, tokenize_rows
from unlearn.evaluation.latent import GROUPS, LatentMeter, LatentRows
from unlearn.evaluation.suite import Suite
from unlearn.functional.tokens import token_mean, token_nll
from unlearn.latents.banks import Banks, build_banks
from unlearn.latents.selection import Selection, select_latents
from unlearn.methods.base import Method, MethodContext
from unlearn.models.decoder import device_of
from unlearn.models.forward import forward
from unlearn.models.reference import ReferenceStore
from unlearn.models.sae import FrozenSAE
from unlearn.registry import find
from unlearn.types import STREAMS, EntityData, PromptFormat, Row, TokenBatch

LAYER = 1
PEOPLE = {
    "forget": ["Ann Lee", "Bob Moss"],
    "retain": ["Carla Diaz", "Dan Roy", "Eve Stone", "Finn Hale"],
    "known": ["Carla Diaz", "Dan Roy", "Eve Stone", "Finn Hale"],
    "unknown": ["Gus Pell", "Hal Quin", "Ida Rook", "Joe Sand", "Kit Tell", "Lou Vane"],
    "retain_unseen": ["Max Wren", "Ned York", "Ola Zane"],
    "unknown_heldout": ["Pia Adler", "Quy Barr", "Rex Cole", "Sid Dorn", "Tam Eyre"],
}
QUESTIONS = ("Where was {} born?", "What is the job of {}?", "Which language does {} speak?")
ANSWERS = ("Paris", "painter", "English", "London", "author")


def rows(group: str, first: int, questions: tuple[str, ...] = QUESTIONS) -> tuple[Row, ...]:
    made = []
    for i, (name, question) in enumerate((n, q) for n in PEOPLE[group] for q in questions):
        answer = "unknown" if group.startswith("unknown") else ANSWERS[(i * 7 + len(name)) % len(ANSWERS)]
        wrong = tuple(a for a in ANSWERS if a != answer)[:3]
        made.append(
            Row(
                row_id=first + i,
                entity=name,
                prompt=question.format(name),
                answer=answer,
                mentions=(name,),
                template=question,
                perturbed_answers=wrong,
            )
        )
    return tuple(made)


def toy_data() -> EntityData:
    """Entity data with every stream and evaluation set."""
    held = ("Tell me who employs {}.", "In which city was {} born?")
    known = rows("retain", 100)
    return EntityData(
        streams={"forget": rows("forget", 0), "retain": known, "known": known, "unknown": rows("unknown", 200)},
        evaluation={
            "forget": rows("forget", 0),
            "forget_paraphrased": rows("forget", 300, held),
            "retain": known,
            "retain_unseen": rows("retain_unseen", 400),
            "unknown": rows("unknown_heldout", 500),
        },
        latent={
            "forget": rows("forget", 300, held),
            "known": rows("retain_unseen", 600, held),
            "unknown": rows("unknown_heldout", 700, held),
        },
        generic=("The author of the book was born in the city.", "The answer is in the book of the city of London."),
        refusals=("unknown",),
        fingerprint="toy",
    )


@dataclass
class Toy:
    """The pieces a method needs."""

    lm: Any
    tokenizer: Any
    datamodule: UnlearningDataModule
    sae: FrozenSAE
    banks: Banks
    selection: Selection
    reference: ReferenceStore
    data: EntityData

    def batch(self, n: int = 4) -> dict[str, TokenBatch]:
        """The first ``n`` rows of every stream."""
        made = {s: next(iter(batches(self.datamodule.streams[s][:n], n, self.datamodule.pad_id)))[1] for s in STREAMS}
        return {s: TokenBatch(*(t.to(device_of(self.lm)) for t in batch)) for s, batch in made.items()}

    def on(self, device: str) -> Toy:
        """The same on another device, as a run has it there: the model and the SAE move, rows and banks stay on the CPU."""
        lm = copy.deepcopy(self.lm).to(device)
        return replace(self, lm=lm, sae=copy.deepcopy(self.sae).to(device), reference=ReferenceStore(lm, self.reference.path))

    def context(self, **changes: Any) -> MethodContext:
        given = {
            "n_blocks": 4,
            "hook_layer": LAYER,
            "sae": self.sae,
            "banks": self.banks,
            "selection": self.selection,
            "reference": self.reference,
            "data": self.data,
            "reader": self.reader(),
            "gold": lambda: tiny_llama(seed=99).to(device_of(self.lm)),
        }
        return MethodContext(**{**given, **changes})

    def reader(self, batch_size: int = 8) -> Reader:
        return Reader(
            tokenizer=self.tokenizer,
            prompt_format=PromptFormat(),
            refusals=self.data.refusals,
            max_length=128,
            batch_size=batch_size,
            max_new_tokens=4,
        )

    def meter(self, config: EvaluationConfig) -> LatentMeter:
        groups = {g: LatentRows.of(self.datamodule.latent[g], [row.entity for row in self.data.latent[g]]) for g in GROUPS}
        return LatentMeter(groups, self.banks, self.selection, self.sae, config, self.datamodule.pad_id, seed=0)

    def suite(self, **evaluation: Any) -> Suite:
        config = EvaluationConfig(**{"bootstrap": 0, "permutations": 9, "null_draws": 0, **evaluation})
        return Suite(
            data=self.data,
            generic=self.datamodule.generic,
            reader=self.reader(),
            meter=self.meter(config),
            selection=self.selection,
            reference=self.reference,
            config=config,
            layer=LAYER,
            seed=0,
        )

    def method(self, name: str, **config: Any) -> Method:
        """The method with everything it declares that it needs, and nothing else; not set up yet."""
        cls = find("method", name).load()
        settings = cls.Config(name=name, **config)
        return cls(settings, self.context().only(cls.required(settings))).to(device_of(self.lm))

    def ready(self, name: str, dtype: torch.dtype | None = None, model: ModelConfig | None = None, **config: Any) -> tuple[Any, Method]:
        """A copy of the language model with the weights freed that a run would train, and the method, set up on it."""
        lm = copy.deepcopy(self.lm).to(dtype)
        method = self.method(name, **config)
        lm, _ = select_weights(lm, method, model or ModelConfig())
        method.setup(lm)
        return lm, method.to(device_of(lm))

    def trained(self, name: str, steps: int = 5, lr: float = 1e-3, **config: Any) -> tuple[Any, Method]:
        """``ready``, then the whole life of a run: steps on one batch, the finish and what is installed."""
        lm, method = self.ready(name, **config)
        weights = [p for p in (*lm.parameters(), *method.parameters()) if p.requires_grad]
        if method.streams_of(method.config):
            optimizer = torch.optim.Adam(weights, lr=lr)
            for step in range(steps):
                method.before_step(lm, step, steps)
                optimizer.zero_grad()
                method.loss(lm, self.batch()).total.backward()
                method.adjust_gradients(lm)
                optimizer.step()
        method.finish(lm)
        method.install(lm)
        return lm, method


def batched(module: UnlearningDataModule, tokens: list[TokenRow]) -> list[TokenBatch]:
    return [b for _, b in batches(tokens, 16, module.pad_id)]


def teach(lm: Any, module: UnlearningDataModule, steps: int = 60) -> None:
    """Train ``lm`` on the forget and retain rows until it knows them, so that there is something to forget."""
    lm.requires_grad_(True)
    optimizer = torch.optim.Adam(lm.parameters(), lr=5e-3)
    taught = batched(module, [*module.streams["forget"], *module.streams["retain"]])
    for _ in range(steps):
        optimizer.zero_grad()
        for batch in taught:
            out = forward(lm, batch)
            token_mean(token_nll(out.logits_AV, out.targets_A)).backward()
        optimizer.step()
    lm.requires_grad_(False)


def toy(folder: Path, seed: int = 0, taught: bool = False, data: EntityData | None = None) -> Toy:
    """Build everything from a seed; with ``taught`` the model knows its forget and retain rows. ``data`` replaces ``toy_data``."""
    torch.manual_seed(seed)
    lm, tokenizer = tiny_llama(seed=seed), tiny_tokenizer()
    for p in lm.parameters():
        p.requires_grad_(False)
    data = data or toy_data()
    config = SourceConfig(source="jsonl", batch=BatchConfig(forget=4, retain=4, known=4, unknown=4))
    module = UnlearningDataModule(data, tokenizer, PromptFormat(), config, steps=5, seed=seed)
    if taught:
        teach(lm, module)
    sae = FrozenSAE(tiny_sae(32, 64, "topk", LAYER))
    streams = {s: batched(module, module.streams[s]) for s in STREAMS}
    strangers = PEOPLE["unknown"]
    matched = tokenize_rows(matched_rows(data.streams["forget"], strangers, 2, seed), tokenizer, PromptFormat(), 128)
    banks = build_banks(lm, streams["known"], streams["unknown"], batched(module, matched), LAYER)
    selection = select_latents(sae, banks, LatentsConfig(top_k=8))
    unique = {r.row_id: r for s in STREAMS for r in module.streams[s]}
    everything = batched(module, [*module.generic, *unique.values()])
    reference = ReferenceStore.build(lm, everything, layers=(0, 1, 2, 3), path=folder / "reference")
    return Toy(lm, tokenizer, module, sae, banks, selection, reference, data)
