from __future__ import annotations

import contextlib
import weakref

import pytest
import torch

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from unlearn.errors import DataError, ModelError
from unlearn.models.capture import capture, capture_layers
from unlearn.models.decoder import blocks_of

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
family = pytest.mark.parametrize("family", list(FAMILIES))


@contextlib.contextmanager
def calls(lm):
    """Number of forward calls of each block and of the output head."""
    count = {}
    watched = {**dict(enumerate(blocks_of(lm))), "head": lm.get_output_embeddings()}
    handles = []
    for key, module in watched.items():
        count[key] = 0

        def add(*_, key=key):
            count[key] += 1

        handles.append(module.register_forward_hook(add))
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@family
def test_layers_equal_hidden_states(family):
    lm, batch = FAMILIES[family](), tiny_batch()
    with torch.no_grad():
        stock = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states
        for layer in (-1, 0, 1, 2):
            torch.testing.assert_close(capture(lm, batch, layer), stock[layer + 1], atol=1e-6, rtol=1e-6)


@family
def test_the_last_layer_is_taken_before_the_final_norm(family):
    lm, batch = FAMILIES[family](), tiny_batch()
    seen = []
    handle = blocks_of(lm)[3].register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        stock = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states[-1]
    handle.remove()
    with torch.no_grad():
        ours = capture(lm, batch, 3)
    torch.testing.assert_close(ours, seen[0], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(ours, stock, atol=1e-2)


def test_positions_are_gathered():
    lm, batch = tiny_llama(), tiny_batch()
    with torch.no_grad():
        whole, at = capture(lm, batch, 1), capture(lm, batch, 1, batch.entity_end_B)
    assert at.shape == (4, 32)
    for row in range(4):
        torch.testing.assert_close(at[row], whole[row, batch.entity_end_B[row]])


@family
@pytest.mark.parametrize("layer", [-1, 0, 2])
def test_upper_blocks_and_head_do_not_run(family, layer):
    lm, batch = FAMILIES[family](), tiny_batch()
    blocks = blocks_of(lm)
    with calls(lm) as count, torch.no_grad():
        capture(lm, batch, layer)
    top = max(layer, 0)
    assert count == {n: int(n <= top) for n in range(4)} | {"head": 0}
    assert blocks_of(lm) is blocks
    assert len(blocks) == 4


def test_blocks_are_back_after_an_error():
    lm, batch = tiny_llama(), tiny_batch()
    blocks = blocks_of(lm)

    def fail(*_):
        raise RuntimeError("stop")

    handle = blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        capture(lm, batch, 1)
    handle.remove()
    assert blocks_of(lm) is blocks
    assert not blocks[1]._forward_hooks


def test_several_layers_in_one_pass():
    lm, batch = tiny_llama(), tiny_batch()
    with calls(lm) as count, torch.no_grad():
        found = capture_layers(lm, batch, (2, -1, 0), batch.entity_end_B)
    assert count == {0: 1, 1: 1, 2: 1, 3: 0, "head": 0}
    assert list(found) == [2, -1, 0]
    with torch.no_grad():
        for layer, values in found.items():
            torch.testing.assert_close(values, capture(lm, batch, layer, batch.entity_end_B))
    assert capture_layers(lm, batch, ()) == {}


def test_blocks_that_return_tuples():
    lm, batch = tiny_llama(), tiny_batch()
    with torch.no_grad():
        expected = capture(lm, batch, 3)
    last = blocks_of(lm)[3]
    stock = last.forward
    last.forward = lambda *args, **kwargs: (stock(*args, **kwargs), "cache")
    lm.model.norm.forward = lambda hidden: hidden[0] if isinstance(hidden, tuple) else hidden
    with torch.no_grad():
        torch.testing.assert_close(capture(lm, batch, 3), expected)


def test_frozen_lower_blocks_keep_no_graph():
    lm, batch = tiny_llama(), tiny_batch()
    lm.requires_grad_(False)
    blocks = blocks_of(lm)
    blocks[2].requires_grad_(True)
    states = {}
    handles = [b.register_forward_hook(lambda m, a, out, n=n: states.update({n: out})) for n, b in enumerate(blocks)]
    found = capture(lm, batch, 2, batch.entity_end_B)
    for handle in handles:
        handle.remove()
    assert states[0].grad_fn is None
    assert states[1].grad_fn is None
    assert found.grad_fn is not None
    found.square().sum().backward()
    assert all(p.grad is not None for p in blocks[2].parameters())
    assert all(p.grad is None for n in (0, 1, 3) for p in blocks[n].parameters())


def test_saved_memory_does_not_grow_with_frozen_lower_blocks():
    def saved(trainable: int) -> int:
        lm, batch = tiny_llama(), tiny_batch()
        lm.requires_grad_(False)
        blocks_of(lm)[trainable].requires_grad_(True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            out = capture(lm, batch, 2)
        assert out.requires_grad
        return sum(sizes)

    assert saved(2) < 0.5 * saved(0)


def test_nothing_outlives_the_pass():
    lm, batch = tiny_llama(), tiny_batch()
    alive = []
    handle = blocks_of(lm)[1].register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out)))
    with torch.no_grad():
        found = capture(lm, batch, 1, batch.entity_end_B)
    handle.remove()
    assert found.shape == (4, 32)
    assert alive[0]() is None


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@family
def test_gradients_are_those_of_a_stock_pass_with_and_without_checkpointing(family, reentrant):
    lm, batch = FAMILIES[family](), tiny_batch()
    lm.requires_grad_(False)
    blocks_of(lm)[1].requires_grad_(True)
    output = lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True)
    output.hidden_states[3].square().sum().backward()
    expected = {n: p.grad.clone() for n, p in blocks_of(lm)[1].named_parameters()}
    lm.zero_grad()
    lm.train()
    lm.gradient_checkpointing_enable({"use_reentrant": reentrant})
    capture(lm, batch, 2).square().sum().backward()
    for name, parameter in blocks_of(lm)[1].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_checkpointing_with_everything_up_to_the_layer_frozen():
    lm, batch = tiny_llama(), tiny_batch()
    with torch.no_grad():
        expected = capture(lm, batch, 1)
    lm.requires_grad_(False)
    blocks_of(lm)[3].requires_grad_(True)
    lm.train()
    lm.gradient_checkpointing_enable()
    torch.testing.assert_close(capture(lm, batch, 1).detach(), expected)
    lm.disable_input_require_grads()  # transformers puts a gradient on the embeddings' output unasked
    found = capture(lm, batch, 1)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


def test_peft_adapters_are_part_of_it():
    from peft import LoraConfig, get_peft_model

    lm, batch = tiny_llama(), tiny_batch()
    with torch.no_grad():
        before = capture(lm, batch, 1)
    wrapped = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.testing.assert_close(capture(wrapped, batch, 1), before)
    adapters = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.add_(0.1)
        stock = wrapped(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states[2]
    found = capture(wrapped, batch, 1)
    torch.testing.assert_close(found, stock)
    assert not torch.allclose(found, before, atol=1e-2)
    found.sum().backward()
    reached = {int(n.split(".layers.")[1].split(".")[0]) for n, p in adapters.items() if p.grad is not None}
    assert reached == {0, 1}


@pytest.mark.parametrize("layer", [4, -2])
def test_a_layer_out_of_range(layer):
    with pytest.raises(ModelError, match=rf"layer must be a block of the model, 0 to 3 \(-1 for the embeddings\); found {layer}"):
        capture(tiny_llama(), tiny_batch(), layer)


def test_a_row_without_an_entity():
    lm, batch = tiny_llama(), tiny_batch()
    with pytest.raises(DataError, match="leave out rows without an entity; found -1"):
        capture(lm, batch, 1, torch.tensor([2, -1, 2, 2]))
