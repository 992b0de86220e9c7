"""Run code at full shape without its numbers: every tensor of floats is a shape on the meta device, memory and work are counted.

Whole numbers and truth values stay real, on the CPU, so that code that looks at tokens, masks and positions goes the way it would go. Those
that come out of floats (an arg-max, a comparison) are made up: zeros and True. A float that is read out is 1.

What is counted is what PyTorch's own kernels allocate, autograd's saved tensors included, since autograd runs as it does for real numbers.
Attention through ``scaled_dot_product_attention`` is counted as a fused kernel, which keeps no T x T matrix, as on CPUs and GPUs.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
META, CPU = torch.device("meta"), torch.device("cpu")
READ_OUT = {aten._local_scalar_dense.default, aten.is_nonzero.default}
MASKED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor}
COPIES = {aten._to_copy.default}
FREE = {
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int, aten.expand.default, aten.detach.default,
    aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.squeeze.dim, aten.permute.default, aten.alias.default,
    aten.empty.memory_format, aten.empty_like.default, aten.split.Tensor, aten.unbind.int, aten.as_strided.default,
}  # fmt: skip
"""Operations that touch no memory."""


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == META


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _on_meta(value: Any) -> Any:
    """A shape in the place of a real tensor."""
    return torch.empty_like(value, device=META) if isinstance(value, Tensor) and value.device != META else value


def _real(value: Any) -> Any:
    """Made-up whole numbers and truth values in the place of shapes of them."""
    if not _is_meta(value) or value.is_floating_point() or value.is_complex():
        return value
    return torch.full(value.shape, value.dtype == torch.bool, dtype=value.dtype, device=CPU)


def _leaves(*values: Any) -> Iterator[Any]:
    """What operations are given or give: values and, one deep, those of lists. Many times as fast as ``tree_iter``."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """``change`` of a value, or of each in a list."""
    if isinstance(value, list):
        return [change(each) for each in value]
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


@cache
def _writes(func: Any) -> bool:
    """Whether an operation writes to its first argument."""
    alias = func._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


class Shadow(TorchDispatchMode):
    """Counts live bytes, their peak, and the work, of everything that runs inside.

    ``live`` and ``peak`` are bytes; ``kinds`` and ``at_peak`` the same by kind. ``work`` maps (FLOPs, bytes touched) of single operations
    to how often they ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.kinds: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.work: Counter[tuple[int, int]] = Counter()
        self.name_of: Any = lambda tensor: "activations"
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._named: dict[int, str] = {}

    def reset(self) -> None:
        """Begin a stretch: the peak is what is live now, the work is none."""
        self.peak, self.at_peak = self.live, Counter(self.kinds)
        self.work.clear()

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._count(tensor, kind)
        self._mark()

    def rename(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count what is counted already under another kind."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._named and self._named[key] != kind:
                self.kinds[self._named[key]] -= storage.nbytes()
                self.kinds[kind] += storage.nbytes()
                self._named[key] = kind

    def _count(self, tensor: Tensor, kind: str | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen and self._seen[key]() is not None:
            return
        size, kind = storage.nbytes(), kind or self.name_of(tensor)
        self.live += size
        self.kinds[kind] += size
        self._named[key] = kind

        def gone(_: Any, key: int = key, size: int = size) -> None:
            self.live -= size
            self.kinds[self._named.pop(key)] -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)

    def _mark(self) -> None:
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, Counter(self.kinds)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        floats = any(_is_meta(a) for a in _leaves(*args, *kwargs.values()))
        if func in READ_OUT and floats:
            return True if args[0].dtype == torch.bool else 1.0
        if func in COPIES:
            return self._copy(func, args, kwargs)
        if not floats:
            return self._plain(func, args, kwargs)
        if _writes(func) and isinstance(args[0], Tensor) and args[0].device != META:
            return args[0]  # real numbers stay what they are
        if func in MASKED:
            places = [p for a in args[1] for p in (a.nonzero().unbind(1) if a is not None and a.dtype == torch.bool else (a,))]
            args = (args[0], places, *args[2:])
        given = {id(a.untyped_storage()) for a in _leaves(*args, *kwargs.values()) if isinstance(a, Tensor)}
        shapes = tuple(_each(_on_meta, a) for a in args)
        options = {name: _each(_on_meta, a) for name, a in kwargs.items()}
        out = func(*shapes, **options)
        self._charge(func, shapes, options, out)
        result = _each(_real, out)
        for tensor in _leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor)
        self._mark()
        return result

    def _plain(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation on real numbers, or one that makes a tensor."""
        made = kwargs.get("device") is not None and torch.device(kwargs["device"]) == META
        out = func(*args, **kwargs)
        given = {id(a.untyped_storage()) for a in _leaves(*args, *kwargs.values()) if isinstance(a, Tensor)}
        if made and any(_is_meta(o) and not o.is_floating_point() for o in _leaves(out)):
            out = func(*args, **{**kwargs, "device": CPU})
        out = _each(lambda o: _on_meta(o) if _is_float(o) and o.dim() and id(o.untyped_storage()) not in given else o, out)
        for tensor in _leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor)
        self._charge(func, args, kwargs, out)
        self._mark()
        return out

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Moves and casts: floats stay shapes once they are, the rest stays real."""
        source, dtype = args[0], kwargs.get("dtype") or args[0].dtype
        device = kwargs.pop("device", None)
        out = func(source, **kwargs)
        if not dtype.is_floating_point:
            out = _real(out)
        elif out.dim() or (device is not None and torch.device(device) == META):
            out = _on_meta(out)
        self._count(out)
        self._charge(func, args, kwargs, out)
        self._mark()
        return out

    def _charge(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if func in FREE:
            return
        count = flop_registry.get(func._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=out)) if count is not None else 0
        touched = sum(a.numel() * a.element_size() for a in _leaves(*args, *kwargs.values(), out) if isinstance(a, Tensor))
        self.work[flops, touched] += 1


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Two matrix products for each head of ``query``, several of which may share one of ``key`` and ``value``."""
    rows, heads, length, width = query.shape
    return int(2 * rows * heads * length * key.shape[-2] * (width + value.shape[-1]))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return int(2.5 * _attention_flops(query, key, value))


flop_registry.setdefault(aten._scaled_dot_product_flash_attention_for_cpu, _attention_flops)
flop_registry.setdefault(aten._scaled_dot_product_flash_attention_for_cpu_backward, _attention_backward_flops)

MIXED = {
    torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.addmm,
    torch.nn.functional.scaled_dot_product_attention,
}  # fmt: skip
"""What autocast computes in the lower precision."""


class Kernels(TorchFunctionMode):
    """Attention as fused kernels do it, lists of numbers that are not there, and autocast, which knows nothing of the meta device.

    ``mixed``: the lower precision of a mixed-precision trainer, used wherever autocast is on for the CPU; casts of weights are kept until
    ``forget``, as autocast keeps them.
    """

    def __init__(self, mixed: torch.dtype | None = None) -> None:
        super().__init__()
        self.mixed = mixed
        self.casts: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Drop the casts of weights."""
        self.casts.clear()

    def _cast(self, value: Any) -> Any:
        if not (_is_meta(value) and value.dtype == torch.float32):
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.mixed)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(self.mixed)
        return self.casts[id(value)]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.tolist, Tensor.numpy) and _is_meta(args[0]):
            made = np.ones(tuple(args[0].shape), np.float32)
            return made.tolist() if func is Tensor.tolist else made
        if self.mixed is not None and func in MIXED and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(self._cast, (args, kwargs))
        if func is torch.nn.functional.scaled_dot_product_attention and _is_meta(args[0]):
            return _fused(*args, **kwargs)
        return func(*args, **kwargs)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill_(
            attn_mask.logical_not(), float("-inf")
        )
    out, _ = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return out
