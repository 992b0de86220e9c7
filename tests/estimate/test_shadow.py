"""Shapes in the place of numbers: what is counted, and what stays real."""

import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unlearn.estimate.shadow import Kernels, Shadow


def test_live_bytes_and_peak_follow_allocations() -> None:
    with Shadow() as shadow:
        a = torch.empty(1000, 1000, device="meta")
        b = a + 1
        assert shadow.live == 8_000_000
        view = b[:10].t()
        assert shadow.live == 8_000_000
        del b
        assert shadow.live == 8_000_000  # the view holds it
        del view
        gc.collect()
        assert shadow.live == 4_000_000
    assert shadow.peak == 8_000_000


def test_kinds_are_kept_apart_and_can_change() -> None:
    shadow = Shadow()
    weight = torch.nn.Parameter(torch.empty(100, 100, device="meta"))
    shadow.hold([weight], "weights")
    with shadow:
        weight.register_post_accumulate_grad_hook(lambda p: shadow.rename([p.grad], "gradients"))
        (weight * 2).sum().backward()
        assert shadow.kinds["weights"] == shadow.kinds["gradients"] == 40_000
        weight.grad = None
        gc.collect()
        assert shadow.kinds["gradients"] == 0
        assert shadow.live == 40_000


def test_whole_numbers_and_masks_stay_real_and_floats_do_not() -> None:
    with Kernels(), Shadow():
        ids = torch.arange(6, device="meta").view(2, 3)
        table = torch.empty(10, 4, device="meta")
        rows = table[ids]
        chosen = rows[torch.tensor([[True, False, True], [False, False, True]])]
        assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert rows.shape == (2, 3, 4)
        assert chosen.shape == (3, 4)
        assert rows.device.type == chosen.device.type == "meta"
        assert rows.argmax(-1).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert bool((rows > 0).all())
        assert float(rows.mean()) == 1.0
        assert rows.sum(0).tolist() == [[1.0] * 4] * 3
        assert torch.zeros(5).device.type == "meta"
        assert torch.zeros(()).device.type == "cpu"


def test_flops_are_those_of_the_flop_counter() -> None:
    lm = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    x = torch.randn(16, 32)
    with FlopCounterMode(display=False) as counter:
        lm(x).sum().backward()
    with torch.device("meta"):
        shape = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    with Shadow() as shadow:
        shape(torch.empty(16, 32, device="meta")).sum().backward()
    assert sum(flops * n for (flops, _), n in shadow.work.items()) == counter.get_total_flops()


def test_fused_attention_keeps_no_square_matrix() -> None:
    q = torch.empty(1, 2, 512, 16, device="meta", requires_grad=True)
    with Kernels(), Shadow() as shadow:
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        out.sum().backward()
    square = 2 * 512 * 512 * 4
    assert out.shape == q.shape
    assert 0 < shadow.peak < square / 2


def test_heads_that_share_keys_are_counted_each() -> None:
    """Scores and means of 8 heads of width 16, 4 of which share a key: 2 x 8 x (64 x 16 x 64 + 64 x 64 x 16) FLOPs."""
    query, key = torch.empty(1, 8, 64, 16, device="meta"), torch.empty(1, 2, 64, 16, device="meta")
    with Kernels(), Shadow() as shadow:
        torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert sum(flops * n for (flops, _), n in shadow.work.items()) == 2 * 8 * 2 * 64 * 64 * 16


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_mixed_precision_computes_products_in_the_lower_one(enabled: bool, dtype: torch.dtype) -> None:
    kernels = Kernels(torch.bfloat16)
    weight = torch.nn.Parameter(torch.empty(8, 8, device="meta"))
    with kernels, torch.autocast("cpu", torch.bfloat16, enabled=enabled), Shadow():
        out = torch.nn.functional.linear(torch.empty(4, 8, device="meta"), weight)
        again = torch.nn.functional.linear(out.float(), weight)
    assert out.dtype == again.dtype == dtype
    assert len(kernels.casts) == int(enabled)  # a weight is cast once
