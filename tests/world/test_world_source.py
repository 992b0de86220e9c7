import pytest

from unlearn.config.schema import SourceConfig
from unlearn.data.checks import check_streams
from unlearn.errors import ConfigError
from unlearn.registry import find
from unlearn.types import PromptFormat
from unlearn.world.source import WorldConfig, WorldSource

SMALL = {
    "n_forget": 2,
    "n_retain": 3,
    "n_unseen": 2,
    "n_tail": 8,
    "n_unknown": 10,
    "n_heldout": 12,
    "blocks": 2,
    "width": 16,
    "steps": 2,
    "sae_latents": 24,
    "heldout_latents": 20,
    "sae_k": 4,
    "sae_steps": 2,
    "sae_rows": 2,
}


def source(tmp_path, seed=0, **changes):
    return WorldSource(WorldConfig(**{**SMALL, **changes}), seed=seed, cache=tmp_path)


def forgotten(source):
    return {row.entity for row in source.load().streams["forget"]}


def test_the_registry_finds_it():
    assert find("source", "world").load() is WorldSource


def test_the_defaults_are_the_world_of_a_hundred():
    spec = WorldConfig().spec()
    assert (spec.n_known, spec.blocks, spec.width, spec.sae_layer) == (100, 4, 128, 1)
    assert spec.n_heldout >= 260
    assert spec.n_unknown + spec.n_heldout >= 1700


def test_rows_need_no_model_and_pass_the_checks(tmp_path):
    data = source(tmp_path).load()
    check_streams(data)
    assert not list(tmp_path.iterdir())
    assert data == source(tmp_path).load()


def test_the_prompt_format_is_the_corpus_s(tmp_path):
    assert source(tmp_path).prompt_format == PromptFormat(question="Q: {question} A:", separator=" ", end="", append_eos=False)


def test_the_run_s_seed_makes_the_world_unless_the_config_names_one(tmp_path):
    assert forgotten(source(tmp_path, seed=1)) != forgotten(source(tmp_path, seed=0))
    assert forgotten(source(tmp_path, seed=1, world_seed=0)) == forgotten(source(tmp_path, seed=0))


def test_forget_sets_differ_on_the_same_model(tmp_path):
    first, second = source(tmp_path), source(tmp_path, forget_set=1)
    assert not forgotten(first) & forgotten(second)
    assert first.load().notes["world"] == second.load().notes["world"]
    assert first.load().fingerprint != second.load().fingerprint
    assert first.assets(progress=False) == second.assets(progress=False)


def test_assets_hold_gold_only_when_asked_for(tmp_path):
    small = source(tmp_path)
    assert small.assets(progress=False).gold is None
    assets = small.assets(gold=True, progress=False)
    for path in (assets.model, assets.gold):
        assert (path / "config.json").is_file()
    for path in (assets.sae, assets.heldout_sae):
        assert (path / "cfg.json").is_file()


def test_gold_differs_between_forget_sets(tmp_path):
    assert source(tmp_path).assets(gold=True, progress=False).gold != source(tmp_path, forget_set=1).assets(gold=True, progress=False).gold


def test_requests_one_after_the_other_are_about_one_world(tmp_path):
    """Three requests of two people, and all six at once: the same models, the same people unseen, nobody who was forgotten in a row."""
    requests = [source(tmp_path, forget_set=n, forgotten_sets=list(range(n)), n_retain=7 - 2 * n) for n in range(3)]
    at_once = source(tmp_path, n_forget=6, n_retain=3)
    assert len({each.config.spec().fingerprint(0) for each in (*requests, at_once)}) == 1
    gone = set()
    for request in requests:
        data = request.load()
        rows = [row for sets in (data.streams, data.evaluation, data.latent) for rows in sets.values() for row in rows]
        assert not gone & {row.entity for row in rows}
        gone |= forgotten(request)
        assert set(request.forgotten()) == gone
    assert gone == forgotten(at_once) == set(at_once.forgotten())
    assert {each.roles().unseen for each in (*requests, at_once)} == {at_once.roles().unseen}
    assert requests[2].roles().retain == at_once.roles().retain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_forget": 0}, "data.n_forget must be >= 1; found 0."),
        ({"forget_set": 3}, r"data.forget_set must be in \[0, 2\]; found 3."),
        ({"forgotten_sets": [1, 1]}, r"data.forgotten_sets must be different numbers in \[0, 4\], data.forget_set not among them"),
        ({"forgotten_sets": [0]}, r"data.forgotten_sets must be different numbers"),
        ({"forgotten_sets": [9]}, r"data.forgotten_sets must be different numbers"),
        ({"world_seed": -1}, "data.world_seed must be >= 0 or null; found -1."),
        ({"sae_layer": 2}, r"data.sae_layer must be in \[0, 1\]; found 2."),
    ],
)
def test_a_value_out_of_range_is_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        WorldConfig(**{**SMALL, **changes})


def test_another_source_s_config_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="data must be a WorldConfig; found 'SourceConfig'"):
        WorldSource(SourceConfig(source="world"), seed=0, cache=tmp_path)
