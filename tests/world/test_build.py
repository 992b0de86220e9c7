import shutil

import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn.errors import CacheError, ConfigError
from unlearn.world.build import build_world
from unlearn.world.corpus import Corpus
from unlearn.world.encyclopaedia import encyclopaedia
from unlearn.world.spec import WorldSpec

TINY = WorldSpec(
    n_known=6,
    n_tail=10,
    n_unknown=10,
    n_heldout=10,
    blocks=2,
    width=16,
    heads=2,
    steps=4,
    batch_rows=2,
    row_tokens=32,
    sae_latents=24,
    heldout_latents=20,
    sae_k=4,
    sae_steps=3,
    sae_batch=16,
    sae_rows=3,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def paths(cache):
    return build_world(TINY, seed=0, cache=cache, progress=False)


def test_the_model_is_an_ordinary_hugging_face_directory(paths):
    lm = AutoModelForCausalLM.from_pretrained(paths.model)
    tokenizer = AutoTokenizer.from_pretrained(paths.model)
    assert (lm.config.num_hidden_layers, lm.config.hidden_size) == (2, 16)
    name = encyclopaedia(TINY, 0).known[0]
    logits = lm(**tokenizer(f"Q: Where was {name} born? A:", return_tensors="pt")).logits
    assert logits.shape == (1, 13, len(tokenizer))
    assert torch.isfinite(logits).all()


def test_the_saes_are_sae_lens_directories_of_different_width(paths):
    sae, second = SAE.load_from_disk(paths.sae), SAE.load_from_disk(paths.heldout_sae)
    assert (sae.cfg.d_sae, second.cfg.d_sae) == (24, 20)
    assert sae.cfg.metadata.hook_name == second.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae.cfg.d_in == 16


def test_a_built_world_is_found_again(cache, paths):
    stamp = (paths.model / "model.safetensors").stat().st_mtime_ns
    assert build_world(TINY, seed=0, cache=cache, progress=False) == paths
    assert (paths.model / "model.safetensors").stat().st_mtime_ns == stamp


def test_building_keeps_the_global_random_state(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    build_world(TINY, seed=0, cache=tmp_path, progress=False)
    assert torch.random.get_rng_state().equal(before)


def test_building_twice_gives_the_same_weights(paths, tmp_path):
    again = build_world(TINY, seed=0, cache=tmp_path, progress=False)
    for part in ("model/model.safetensors", "sae/sae_weights.safetensors"):
        assert (paths.model.parent / part).read_bytes() == (again.model.parent / part).read_bytes()


def test_the_gold_model_is_built_when_asked_for_and_shares_the_world(cache, paths):
    forgotten = encyclopaedia(TINY, 0).known[:2]
    assert paths.gold is None
    with_gold = build_world(TINY, seed=0, cache=cache, forgotten=forgotten, gold=True, progress=False)
    assert with_gold.model == paths.model
    gold, base = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (with_gold.gold, paths.model))
    assert not gold["model.embed_tokens.weight"].equal(base["model.embed_tokens.weight"])
    assert AutoTokenizer.from_pretrained(with_gold.gold).bos_token_id is not None


def test_the_gold_model_is_trained_without_the_forgotten(monkeypatch, tmp_path):
    seen = []
    make = Corpus.__init__

    def spy(self, world, tokenizer, **options):
        seen.append(options.get("known"))
        make(self, world, tokenizer, **options)

    monkeypatch.setattr(Corpus, "__init__", spy)
    known = encyclopaedia(TINY, 0).known
    build_world(TINY, seed=0, cache=tmp_path, forgotten=known[1:3], gold=True, progress=False)
    assert seen == [None, [known[0], *known[3:]]]


def test_a_damaged_world_is_an_error(paths, tmp_path):
    shutil.copytree(paths.model.parent, tmp_path / "world" / paths.model.parent.name)
    (tmp_path / "world" / paths.model.parent.name / "sae" / "cfg.json").write_text("{}")
    with pytest.raises(CacheError, match=r"must hold sae/cfg\.json with sha256 \w{12}; found \w{12}; delete .* and run again"):
        build_world(TINY, seed=0, cache=tmp_path, progress=False)


def test_every_parameter_and_the_seed_change_the_fingerprint():
    prints = {
        TINY.fingerprint(0),
        TINY.fingerprint(1),
        TINY.fingerprint(0, ("A",)),
        WorldSpec().fingerprint(0),
        WorldSpec(lr=1e-3).fingerprint(0),
    }
    assert len(prints) == 5
    assert TINY.fingerprint(0, ("A", "B")) == TINY.fingerprint(0, ("B", "A"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_tail", 0, "data.n_tail must be >= 1; found 0."),
        ("width", 20, r"data.width must be a multiple of 2 \* heads; found 20."),
        ("row_tokens", 8, "data.row_tokens must be >= 16; found 8."),
        ("known_first", 1.5, r"data.known_first must be in \[0, 1\]; found 1.5."),
        ("sae_layer", 4, r"data.sae_layer must be in \[0, 3\]; found 4."),
        ("sae_latents", 8, r"data.sae_latents must be >= sae_k \(16\); found 8."),
        ("init_std", 0.0, "data.init_std must be > 0; found 0.0."),
    ],
)
def test_a_parameter_out_of_range_is_an_error(field, value, message):
    with pytest.raises(ConfigError, match=message):
        WorldSpec(**{field: value})
