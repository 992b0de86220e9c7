from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.config.schema import ModelConfig, TrainableConfig
from unlearn.errors import CacheError, ModelError
from unlearn.functional.tokens import token_nll
from unlearn.models.decoder import blocks_of
from unlearn.models.forward import forward
from unlearn.models.reference import ReferenceStore
from unlearn.models.trainable import select_trainable
from unlearn.types import TokenBatch

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
BATCHES = [tiny_batch(rows=4, seed=1), tiny_batch(rows=3, length=16, seed=2, first_id=4)]


def frozen(**options):
    lm = tiny_llama(**options)
    return lm.requires_grad_(False)


def pick(rows: list[int]) -> TokenBatch:
    """Some rows of the batches above, padded anew."""
    found = {}
    for batch in BATCHES:
        for row in range(len(batch.row_id_B)):
            found[int(batch.row_id_B[row])] = TokenBatch(*(t[row] for t in batch))
    length = max(int(found[r].attention_mask_BT.sum()) for r in rows) + 2

    def wide(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(found[r], name)[:length] for r in rows]
        return torch.stack([torch.cat([p, p.new_full((length - len(p),), fill)]) for p in parts])

    whole = [torch.stack([getattr(found[r], n) for r in rows]) for n in ("entity_end_B", "answer_start_B", "row_id_B")]
    return TokenBatch(wide("input_ids_BT", 0), wide("attention_mask_BT", 0), wide("labels_BT", -100), *whole)


LOOKUPS = [[0, 1, 2, 3], [6, 2], [5, 5, 0], [4]]


@torch.no_grad()
def train_a_bit(lm) -> None:
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))


def check_equal(store: ReferenceStore, before, batch: TokenBatch, layers) -> None:
    """The store against a live pass of the model as it was."""
    with torch.no_grad():
        out = forward(before, batch, layers)
    mask = batch.attention_mask_BT.bool()
    for layer in layers:
        hidden = store.hidden(batch, layer)
        assert hidden.dtype == torch.float32
        torch.testing.assert_close(hidden[mask], out.hidden[layer][mask], atol=1e-5, rtol=1e-5)
        assert hidden[~mask].abs().sum() == 0
    torch.testing.assert_close(store.final(batch), out.final_AD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(store.logits(batch), out.logits_AV, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(store.nll(batch), token_nll(out.logits_AV, out.targets_A), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("trained", [{"blocks": "all"}, {"mode": "full"}, {"blocks": "0", "embeddings": True}, {"mode": "lora"}])
def test_equal_to_a_live_pass_after_training(tmp_path, family, trained):
    """Blocks, head and tied embeddings, or adapters are trained; the store still gives what the model gave."""
    from unlearn.config.schema import LoRAConfig

    lm = FAMILIES[family]().requires_grad_(False)
    before = copy.deepcopy(lm)
    store = ReferenceStore.build(lm, BATCHES, layers=(1, -1, 3), path=tmp_path / "store")
    check_equal(store, before, pick([0, 6]), (1, -1, 3))
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "down_proj"]
    lm, _ = select_trainable(lm, ModelConfig(trainable=TrainableConfig(**trained), lora=LoRAConfig(targets=targets)), None)
    train_a_bit(lm)
    batch = pick([0, 1, 5])
    with torch.no_grad():
        assert not torch.allclose(forward(lm, batch).logits_AV, forward(before, batch).logits_AV, atol=0.05)
    for rows in LOOKUPS:
        check_equal(store, before, pick(rows), (1, -1, 3))


def test_the_live_head_is_used_while_it_is_as_it_was(tmp_path):
    lm = frozen()
    store = ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s")
    blocks_of(lm)[0].requires_grad_(True)
    train_a_bit(lm)
    store.logits(BATCHES[0])
    assert store._frozen_head is None
    expected = store.logits(BATCHES[0]).clone()
    assert not expected.requires_grad
    with torch.no_grad():  # changed in place, as a quantisation would, without being trainable
        lm.lm_head.weight.mul_(1.5)
    torch.testing.assert_close(store.logits(BATCHES[0]), expected)
    assert store._frozen_head is not None
    assert store._frozen_head.weight.data_ptr() != lm.lm_head.weight.data_ptr()


def test_a_resumed_run_finds_the_old_head(tmp_path):
    """The store is opened by a fresh process with the original weights; the checkpoint comes afterwards."""
    lm = frozen()
    before = copy.deepcopy(lm)
    ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s")
    lm = copy.deepcopy(before)
    store = ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s")
    lm.load_state_dict({k: v + 0.1 for k, v in lm.state_dict().items()})
    check_equal(store, before, BATCHES[1], (1,))


def test_the_second_build_does_not_run_the_model(tmp_path):
    lm = frozen()
    ReferenceStore.build(lm, BATCHES, layers=(0, 2), path=tmp_path / "s")
    runs = []
    lm.model.register_forward_hook(lambda *_: runs.append(1))
    store = ReferenceStore.build(lm, BATCHES, layers=(2,), path=tmp_path / "s")
    assert runs == []
    assert isinstance(store._hidden[2], np.memmap)
    assert isinstance(store._final, np.memmap)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.lock"]
    store.hidden(BATCHES[0], 2)
    store.logits(BATCHES[0])
    assert runs == []


def test_rows_that_occur_twice_are_run_once(tmp_path):
    lm = frozen()
    runs = []
    lm.model.layers[0].register_forward_hook(lambda m, a, out: runs.append(len(out)))
    store = ReferenceStore.build(lm, [BATCHES[0], BATCHES[0], pick([3, 4])], layers=(1,), path=tmp_path / "s")
    assert runs == [1, 1, 4, 2]  # the first two compare ways to make logits
    assert len(np.load(tmp_path / "s" / "nll.npy")) == 4 * 5
    check_equal(store, lm, pick([4, 0]), (1,))


def test_two_rows_with_one_id(tmp_path):
    with pytest.raises(ModelError, match="row_id must name one row only; found two different rows with row_id 2"):
        ReferenceStore.build(frozen(), [BATCHES[0], tiny_batch(rows=2, seed=9, first_id=2)], layers=(1,), path=tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_lookups_that_fail(tmp_path):
    store = ReferenceStore.build(frozen(), BATCHES, layers=(1,), path=tmp_path / "s")
    unknown = BATCHES[0]._replace(row_id_B=torch.tensor([0, 1, 99, 3]))
    for look in (store.nll, store.logits, lambda b: store.hidden(b, 1)):
        with pytest.raises(ModelError, match="row_id must be one of the 7 rows of the reference; found 99"):
            look(unknown)
    with pytest.raises(ModelError, match=r"layer must be one that the reference holds \(1\); found 2"):
        store.hidden(BATCHES[0], 2)
    fewer = BATCHES[0].labels_BT.clone()
    fewer[0, -1] = -100
    with pytest.raises(ModelError, match=r"Row 0 must have as many tokens and labels as it was stored with \(12, 4\); found 12, 3"):
        store.nll(BATCHES[0]._replace(labels_BT=fewer))
    with pytest.raises(ModelError, match="0 to 3"):
        ReferenceStore.build(frozen(), BATCHES, layers=(7,), path=tmp_path / "t")


@pytest.mark.parametrize("name", ["hidden_1.npy", "final.npy", "nll.npy", "index.npy", "head.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_damaged_files(tmp_path, name, harm):
    lm, path = frozen(), tmp_path / "s"
    ReferenceStore.build(lm, BATCHES, layers=(1,), path=path)
    file = path / name
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-4] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CacheError, match=rf"{name} must be as it was written; found it missing or damaged. Delete the folder"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=path)


def test_a_damaged_manifest(tmp_path):
    lm, path = frozen(), tmp_path / "s"
    ReferenceStore.build(lm, BATCHES, layers=(1,), path=path)
    manifest = json.loads((path / "manifest.json").read_text())
    for text in ("{", "[]", '{"format": 1}'):
        (path / "manifest.json").write_text(text)
        with pytest.raises(CacheError, match="found no readable manifest.json"):
            ReferenceStore(lm, path)
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(CacheError, match="must be a reference of format 1; found 0"):
        ReferenceStore(lm, path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match="found no readable manifest.json"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "empty")


def test_a_store_of_something_else(tmp_path):
    lm, path = frozen(), tmp_path / "s"
    ReferenceStore.build(lm, BATCHES[:1], layers=(1,), path=path)
    with pytest.raises(CacheError, match="must hold the references of this run; found none for row 4 as it is now"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=path)
    with pytest.raises(CacheError, match="found none for layer 2"):
        ReferenceStore.build(lm, BATCHES[:1], layers=(2,), path=path)
    with pytest.raises(CacheError, match="found none for row 0 as it is now"):
        ReferenceStore.build(lm, [tiny_batch(rows=4, seed=8)], layers=(1,), path=path)
    with pytest.raises(CacheError, match="model of width 16; found 32"):
        ReferenceStore.build(frozen(d_model=16, heads=2), BATCHES[:1], layers=(1,), path=path)


def test_half_precision_on_disk(tmp_path):
    lm = frozen()
    whole = ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "a")
    half = ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "b", dtype="float16")
    assert np.load(tmp_path / "b" / "hidden_1.npy").dtype == np.float16
    torch.testing.assert_close(half.hidden(BATCHES[0], 1), whole.hidden(BATCHES[0], 1), atol=5e-3, rtol=5e-3)
    assert not torch.equal(half.hidden(BATCHES[0], 1), whole.hidden(BATCHES[0], 1))
    torch.testing.assert_close(half.nll(BATCHES[0]), whole.nll(BATCHES[0]))
    with pytest.raises(ModelError, match="must be one of float32, float16; found 'int8'"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "c", dtype="int8")
    with torch.no_grad():
        blocks_of(lm)[1].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(ModelError, match=r"must be finite in float16; .*float16 ends at 65504"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "d", dtype="float16")
    assert not (tmp_path / "d").exists()


def test_rows_without_answers(tmp_path):
    lm = frozen()
    batch = BATCHES[0]._replace(labels_BT=torch.full_like(BATCHES[0].labels_BT, -100))
    store = ReferenceStore.build(lm, [batch], layers=(1,), path=tmp_path / "s")
    assert store.logits(batch).shape == (0, 512)
    assert store.nll(batch).shape == (0,)
    assert store.hidden(batch, 1).abs().sum() > 0


def test_a_bfloat16_model(tmp_path):
    lm = frozen().bfloat16()
    store = ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s")
    with torch.no_grad():
        out = forward(lm, BATCHES[0], (1,))
    mask = BATCHES[0].attention_mask_BT.bool()
    assert torch.equal(store.hidden(BATCHES[0], 1)[mask], out.hidden[1][mask].float())
    assert torch.equal(store.logits(BATCHES[0]), out.logits_AV)
    lm.lm_head.requires_grad_(True)
    train_a_bit(lm)
    assert torch.equal(store.logits(BATCHES[0]), out.logits_AV)


def test_adapters_are_off_and_modes_are_back(tmp_path):
    lm = frozen()
    before = copy.deepcopy(lm)
    wrapped, _ = select_trainable(lm, ModelConfig(trainable=TrainableConfig(mode="lora")), None)
    train_a_bit(wrapped)
    wrapped.train()
    store = ReferenceStore.build(wrapped, BATCHES, layers=(1,), path=tmp_path / "s")
    assert wrapped.training
    check_equal(store, before, BATCHES[0], (1,))


def test_a_family_whose_logits_cannot_be_made_again(tmp_path):
    lm = frozen()
    stock = lm.forward

    def more(*args, **kwargs):
        out = stock(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    lm.forward = more
    with pytest.raises(ModelError, match="Logits must follow from the final hidden states .*; LlamaForCausalLM does more"):
        ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s")


def test_builders_that_meet(tmp_path):
    models = [frozen() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda lm: ReferenceStore.build(lm, BATCHES, layers=(1,), path=tmp_path / "s"), models))
    for store in stores:
        torch.testing.assert_close(store.nll(BATCHES[0]), stores[0].nll(BATCHES[0]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.lock"]
