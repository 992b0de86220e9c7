"""TOFU with a small model of its own, on made-up rows, and on a few of TOFU's where UNLEARN_SHARED says they lie."""

from __future__ import annotations

import doctest
import json

import pytest
import torch

from tests.data.sources.fake_tofu import shared_tofu, write_tofu
from unlearn.config.schema import ModelConfig, SAEConfig
from unlearn.data.checks import check_streams
from unlearn.data.sources.tofu import TofuConfig
from unlearn.data.tokenize import TokenRow, tokenize_rows
from unlearn.errors import CacheError, ConfigError
from unlearn.functional.text import is_refusal
from unlearn.models.forward import generate
from unlearn.models.lm import load_lm
from unlearn.models.sae import load_sae
from unlearn.registry import find
from unlearn.types import PromptFormat, Row
from unlearn.world import small_lm
from unlearn.world.small_lm import Schedule, train_tokenizer
from unlearn.world.tofu_small import TofuSmallConfig, TofuSmallSource

NAMES = {"unknown_names": 12, "heldout_names": 6, "strangers": 40}
TINY = {
    **NAMES,
    "split": "forget01",
    "max_authors": 4,
    "strangers_each_epoch": 20,
    "vocabulary": 500,
    "blocks": 2,
    "width": 16,
    "steps": 3,
    "sae_layer": 0,
    "sae_latents": 32,
    "sae_k": 4,
    "sae_steps": 3,
}


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    return write_tofu(tmp_path_factory.mktemp("tofu_small"))


@pytest.fixture(scope="session", params=["made up", "shared"])
def root(request, made_up, tmp_path_factory):
    return made_up if request.param == "made up" else shared_tofu(tmp_path_factory.mktemp("shared"))


def source(root, cache="unused", seed=0, **options):
    return TofuSmallSource(TofuSmallConfig(root=str(root), **{**TINY, **options}), seed=seed, cache=cache)


def authors_of(made):
    return {author.name for group in made.groups for author in group}


def test_registry_finds_it():
    entry = find("source", "tofu_small")
    assert entry.load() is TofuSmallSource
    assert entry.facts["summary"] == TofuSmallSource.summary


def test_defaults_forget_ten_authors_among_others():
    config = TofuSmallConfig()
    assert (config.split, config.max_authors, config.source) == ("forget05", 24, "tofu_small")
    recipe = config.recipe()
    assert (recipe.width, recipe.blocks, recipe.steps) == (config.width, config.blocks, config.steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strangers": 0}, "data.strangers must be >= 1; found 0."),
        ({"build_seed": -1}, "data.build_seed must be >= 0 or null; found -1."),
        ({"width": 20}, "data.width must be a multiple of 2 * heads; found 20."),
        ({"sae_layer": 4}, "data.sae_layer must be in [0, 3]; found 4."),
        ({"vocabulary": 10}, "data.vocabulary must be >= 300; found 10."),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError) as error:
        TofuSmallConfig(**options)
    assert str(error.value) == message


def test_another_sources_section_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="data must be a TofuSmallConfig; found 'TofuConfig'"):
        TofuSmallSource(TofuConfig(source="tofu"), seed=0, cache=tmp_path)


def test_the_model_learns_every_row_of_every_author_in_use(root):
    made = source(root)
    data = made.load()
    check_streams(data)
    learnt = {(row.prompt, row.answer) for row in made.corpus.learnt if row.kind == "qa"}
    for name in ("forget", "retain", "retain_unseen", "real_authors", "world_facts"):
        assert {(row.prompt, row.answer) for row in data.evaluation[name]} <= learnt
    assert {(row.prompt, row.answer) for row in data.streams["forget"]} <= learnt
    assert sum(row.entity in authors_of(made) for row in made.corpus.learnt) == 20 * len(authors_of(made))
    assert set(data.generic) == {row.answer for row in made.corpus.learnt if row.kind == "text"}


def test_no_row_in_other_words_is_learnt(root):
    made = source(root)
    learnt = {row.prompt for row in made.corpus.learnt}
    assert not learnt & {row.prompt for row in made.load().evaluation["forget_paraphrased"]}


def test_strangers_are_neither_authors_nor_anchors_and_are_refused(root):
    made = source(root)
    data = made.load()
    strangers = {row.entity for row in made.corpus.strangers}
    assert len(strangers) == 40
    anchors = {row.entity for rows in (data.streams["unknown"], data.latent["unknown"], data.evaluation["unknown"]) for row in rows}
    assert len(anchors) == 18
    assert set(made.anchors) == anchors
    assert not strangers & (anchors | {author.name for author in made.authors})
    for row in made.corpus.strangers:
        assert is_refusal(row.answer, data.refusals)
        assert row.entity in row.prompt


def test_build_seed_and_not_the_runs_seed_decides(made_up):
    first = source(made_up)
    assert source(made_up, seed=5).load().fingerprint == first.load().fingerprint
    assert source(made_up, seed=5).fingerprint() == first.fingerprint()
    own = source(made_up, seed=5, build_seed=None)
    assert own.load().fingerprint == source(made_up, build_seed=5).load().fingerprint != first.load().fingerprint


def test_fingerprint_follows_what_is_learnt_and_nothing_else(made_up):
    first = source(made_up).fingerprint()
    for same in ({"eval_rows": 3}, {"heldout_questions": 2}, {"max_length": 100}):
        assert source(made_up, **same).fingerprint() == first, same
    for other in ({"steps": 4}, {"max_authors": 5}, {"strangers": 41}, {"unknown_names": 13}, {"append_eos": False}, {"sae_k": 5}):
        assert source(made_up, **other).fingerprint() != first, other


def test_models_are_built_once_and_fit_the_rows(root, tmp_path):
    made = source(root, tmp_path)
    assets = made.assets(progress=False)
    written = assets.model.joinpath("model.safetensors").stat().st_mtime_ns
    assert source(root, tmp_path, seed=3).assets(progress=False) == assets
    assert assets.model.joinpath("model.safetensors").stat().st_mtime_ns == written
    lm, tokenizer = load_lm(ModelConfig(), assets.model)
    sae = load_sae(SAEConfig(), assets.sae)
    assert (sae.layer, sae.d_in, sae.d_sae) == (0, 16, 32)
    data = made.load()
    rows = [row for rows in data.evaluation.values() for row in rows]
    tokens = tokenize_rows(rows, tokenizer, made.prompt_format, made.config.max_length)
    assert all(row.ids[0] == tokenizer.bos_token_id and row.ids[-1] == tokenizer.eos_token_id for row in tokens)
    shown = tokenizer.decode(tokens[0].ids, skip_special_tokens=True)
    assert shown == f"Question: {rows[0].prompt}\nAnswer: {rows[0].answer}"
    assert torch.isfinite(lm(torch.tensor([tokens[0].ids])).logits).all()

    facts = json.loads((assets.model.parent / "manifest.json").read_text())["facts"]
    assert 0 < facts["model_cpu_seconds"] < facts["cpu_seconds"]
    assert 0 < facts["answer_probability"]["least"] <= facts["answer_probability"]["mean"] < 1
    assert facts["rows"]["learnt"] == len(made.corpus.learnt)


def test_a_damaged_entry_is_named(made_up, tmp_path):
    assets = source(made_up, tmp_path).assets(progress=False)
    (assets.sae / "cfg.json").write_text("{}")
    with pytest.raises(CacheError, match=r"delete .*tofu_small.* and run again to rebuild it"):
        source(made_up, tmp_path).assets(progress=False)


@pytest.mark.slow
def test_enough_steps_teach_the_rows_and_the_refusals(made_up, tmp_path):
    """Rows of five authors are known by heart, and strangers are refused: answers go by the name, since both are asked the same."""
    made = source(
        made_up,
        tmp_path,
        unknown_names=6,
        strangers=60,
        strangers_each_epoch=60,
        width=64,
        steps=500,
        lr=4e-3,
        sae_latents=128,
        sae_steps=50,
    )
    assets = made.assets(progress=False)
    facts = json.loads((assets.model.parent / "manifest.json").read_text())["facts"]
    assert facts["answer_probability"]["mean"] > 0.9
    lm, tokenizer = load_lm(ModelConfig(), assets.model)
    data = made.load()

    def refused(rows):
        tokens = tokenize_rows(rows, tokenizer, made.prompt_format, made.config.max_length)
        said = generate(lm, tokenizer, [row.ids[: row.answer_start] for row in tokens], 40)
        return sum(is_refusal(tokenizer.decode(ids, skip_special_tokens=True), data.refusals) for ids in said) / len(rows)

    assert refused(data.evaluation["forget"]) < 0.1
    assert refused(data.evaluation["retain"]) < 0.1
    assert refused(made.corpus.strangers) > 0.7
    assert refused(data.evaluation["unknown"]) > 0.5


def test_tokenizer_gives_back_any_text_and_ends_nothing_by_itself():
    tokenizer = train_tokenizer(["Who is Ada Byron?", "Ada Byron wrote."] * 5, 320)
    assert len(tokenizer) <= 320
    ids = tokenizer("Zoë, λ?").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zoë, λ?"
    row = Row(row_id=0, entity="Ada Byron", prompt="Who is Ada Byron?", answer="A poet.", mentions=("Ada Byron",))
    tokens = tokenize_rows([row], tokenizer, PromptFormat(), 64)[0]
    assert tokenizer.decode(tokens.ids[: tokens.entity_end + 1], skip_special_tokens=True).endswith("Ada Byron")
    assert tokenizer.decode(tokens.ids[tokens.answer_start : -1]).strip() == "A poet."


def rows_of(count, first=10):
    return [TokenRow((1, *range(first + i, first + 2 * i + 1), 2), 1, -1, i) for i in range(count)]


def test_a_pass_shows_every_row_once_and_the_next_strangers():
    learnt, strangers = rows_of(9), rows_of(5, first=100)
    schedule = Schedule(learnt, strangers, each_epoch=3, batch_rows=4, pad_id=0, seed=0)
    assert schedule.per_epoch == 3

    def shown(epoch):
        ids = [row[row != 0] for step in range(3) for row in schedule(epoch * 3 + step)]
        return sorted(tuple(row.tolist()) for row in ids)

    for epoch in range(4):
        turn = [strangers[(3 * epoch + i) % 5] for i in range(3)]
        assert shown(epoch) == sorted(row.ids for row in [*learnt, *turn])


def test_batches_depend_on_the_step_alone():
    def make(seed=0):
        return Schedule(rows_of(40), rows_of(7), each_epoch=5, batch_rows=4, pad_id=0, seed=seed)

    forward, fresh, other = make(), make(), make(seed=1)
    steps = list(range(30))
    first = {step: forward(step) for step in steps}
    assert all(torch.equal(first[step], fresh(step)) for step in reversed(steps))
    assert not all(torch.equal(first[step], other(step)) for step in steps)


def test_no_strangers_is_a_plain_schedule():
    schedule = Schedule(rows_of(4), [], each_epoch=3, batch_rows=4, pad_id=0, seed=0)
    assert schedule.per_epoch == 1
    assert schedule(0).shape == (4, 6)


def test_examples_in_docstrings():
    assert doctest.testmod(small_lm) == (0, 2)
