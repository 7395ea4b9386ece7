"""How each function of torch hands on the rows and columns that its inputs depend on; for `receptive_field.py`.

A rule maps the fields of a function's arguments to that of its result. All positions of a kernel count, padding counts
nothing, and channels count together: a network that splits what it has concatenated gets the union of both parts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lightning_modules.analysis.field import NOTHING, WHOLE, Call, Field, each


def _unions(fields: Sequence[Field]) -> Field:
    if all(field is fields[0] for field in fields):
        return fields[0]
    return Field(tuple(reduce(torch.minimum, bounds) for bounds in zip(*(f.bounds for f in fields), strict=True)))


def union(call: Call) -> Field:
    """Elementwise functions: what any of the arguments depends on."""
    return _unions(call.fields())


def _whole() -> Field:
    return Field(tuple(torch.tensor(WHOLE) for _ in range(4)))


def _fresh(call: Call) -> None:
    """A new tensor like one that is given, or zeros in its place, depend on nothing."""


def _overwritten(call: Call) -> Field | None:
    return call.field("src" if "src" in call.args else "value")


def _mixed(field: Field, dims: Sequence[int]) -> Field:
    """Every position depends on all positions along `dims`; where that is all there are, on the whole image."""

    def mix(bound: Tensor) -> Tensor:
        varying = [dim for dim in dims if bound.shape[dim] > 1]
        if not varying:
            return bound
        mixed = bound.amin(varying, keepdim=True)
        return mixed if mixed.numel() > 1 else torch.full_like(mixed, WHOLE)

    return Field(tuple(map(mix, field.bounds)))


def _reduced(call: Call) -> list[Field]:
    """Sums, means, maxima, sorting, softmax along `dim`, or along all dimensions."""
    rank, dim = call.first.dim(), call.args.get("dim")
    dims = list(range(rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    dims = [d % rank for d in dims]
    field = _mixed(call.field_of_first(), dims)
    outs = list(call.out) if isinstance(call.out, tuple) else [call.out]
    if outs[0].dim() < rank:
        kept = [d for d in range(rank) if d not in dims]
        field = each(field, lambda bound: bound.reshape([bound.shape[d] for d in kept]))
    return [field] * len(outs)


def _reach(field: Field, dim: int, taps: Tensor) -> Field:
    """Position i along `dim` depends on the positions taps[i] of the argument; -1 is padding."""

    def reach(bound: Tensor) -> Tensor:
        if bound.shape[dim] == 1:
            return bound
        size = bound.shape[dim]
        padded = torch.cat([bound, torch.full_like(bound.narrow(dim, 0, 1), NOTHING)], dim)
        return reduce(torch.minimum, (padded.index_select(dim, tap) for tap in taps.where(taps >= 0, size).T))

    return Field(tuple(map(reach, field.bounds)))


def _window(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Taps (out, kernel) of a convolution or a pooling along one axis."""
    taps = torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation
    return taps.where((taps >= 0) & (taps < size), -1)


def _transposed_window(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Input i writes to i * stride - padding + k * dilation, so output o reads from where that is o."""
    source = torch.arange(out)[:, None] + padding - torch.arange(kernel) * dilation
    taps = source // stride
    return taps.where((source % stride == 0) & (taps >= 0) & (taps < size), -1)


def _convolution(call: Call) -> Field:
    if call.field("weight") or call.field("bias"):
        raise NotImplementedError("receptive_field cannot follow a convolution with weights made of the image")
    window, field = _transposed_window if call["transposed"] else _window, call.field_of_first()
    field = Field(tuple(bound.amin(1, keepdim=True) for bound in field.bounds))  # channels
    for dim in range(2, call.first.dim()):
        shape = (tensor.shape[dim] for tensor in (call.first, call.out, call["weight"]))
        kind = (call[name][dim - 2] for name in ("stride", "padding", "dilation"))
        field = _reach(field, dim, window(*shape, *kind))
    return field


def _pooling(call: Call) -> list[Field]:
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    kernel, padding, dilation = (_pair(call.args.get(name, 1)) for name in ("kernel_size", "padding", "dilation"))
    stride = _pair(call["stride"]) or kernel
    field, windows = call.field_of_first(), []
    for axis in (0, 1):
        size, to = call.first.shape[axis - 2], out.shape[axis - 2]
        windows.append(_window(size, to, kernel[axis], stride[axis], padding[axis], dilation[axis]))
        field = _reach(field, out.dim() - 2 + axis, windows[axis])
    rows, columns = (window.where(window >= 0, WHOLE).T for window in windows)
    leading = (1,) * (out.dim() - 2)
    index = Field(
        field.bounds,
        rows=tuple(row.view(*leading, -1, 1) * call.first.shape[-1] for row in rows),
        columns=tuple(column.view(*leading, 1, -1) for column in columns),
    )
    return [field, index]


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _adaptive_pooling(call: Call) -> list[Field]:
    """Into a fixed number of bins, unless there are as many as positions."""
    dims = [dim for dim in (-2, -1) if call["output_size"][dim] != call.first.shape[dim]]
    field = _mixed(call.field_of_first(), [call.first.dim() + dim for dim in dims])
    return [field, field]


def _resizing(call: Call) -> Field:
    """`F.interpolate`; a tap of weight zero does not count."""
    name, field = call.function._schema.name, call.field_of_first()
    for dim, scale in ((2, call["scales_h"]), (3, call["scales_w"])):
        size, out = call.first.shape[dim], call.out.shape[dim]
        ratio = 1 / scale if scale else size / out
        index = torch.arange(out, dtype=torch.float64)
        if "nearest" in name:
            taps = (((index + 0.5) if "exact" in name else index) * ratio).floor()[:, None]
        else:
            aligned = call["align_corners"]
            place = index * (size - 1) / max(out - 1, 1) if aligned else (index + 0.5) * ratio - 0.5
            below = (place + 1e-6).floor()  # 1e-6: what rounding may leave of a weight that is zero
            reach = torch.arange(-1, 3) if "cubic" in name else torch.arange(2)
            between = (place - below).abs() > 1e-6
            taps = torch.where(between[:, None], below[:, None] + reach, below[:, None])
        field = _reach(field, dim, taps.long().clamp(0, size - 1))  # the border repeats
    return field


def _padding(call: Call) -> Field:
    """`F.pad`: zeros depend on nothing, mirrored and repeated pixels on themselves."""
    name, field, rank = call.function._schema.name, call.field_of_first(), call.first.dim()
    pad: list[int] = call.args.get("pad") or call["padding"]
    for number, before in enumerate(pad[::2]):
        dim = rank - 1 - number
        size = call.first.shape[dim]
        taps = torch.arange(call.out.shape[dim]) - before
        if "reflection" in name:
            taps = (size - 1) - ((size - 1) - taps.abs()).abs()
        elif "replication" in name:
            taps = taps.clamp(0, size - 1)
        field = _reach(field, dim, taps.where((taps >= 0) & (taps < size), -1)[:, None])
    return field


def _pixel_shuffle(call: Call) -> Field:
    field, factor = call.field_of_first(), call["upscale_factor"]
    for dim in (call.first.dim() - 2, call.first.dim() - 1):
        field = _reach(field, dim, torch.arange(call.out.shape[dim])[:, None] // factor)
    return field


def _joint_shape(tensors: Iterable[Tensor]) -> list[int]:
    return list(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]


def _compact(bound: Tensor) -> Tensor:
    """Length 1 along every dimension in which nothing varies."""
    for dim in range(bound.dim()):
        if bound.shape[dim] > 1 and (bound.stride(dim) == 0 or bool((bound == bound.narrow(dim, 0, 1)).all())):
            bound = bound.narrow(dim, 0, 1)
    return bound


def _view(call: Call) -> list[Field]:
    """Slices and dimensions in another order: the same function, of the bounds spread over the whole tensor."""
    rest, options = call.rest

    def views(bound: Tensor) -> list[Tensor]:
        out = call.function(bound.expand(call.first.shape), *rest, **options)
        return [_compact(part) for part in (out if isinstance(out, list | tuple) else [out])]

    parts = [[views(bound) for bound in part] for part in call.field_of_first()]
    return [Field(*(tuple(bound[i] for bound in part) for part in parts)) for i in range(len(parts[0][0]))]


def _reshape(call: Call) -> Field:
    """Dimensions that are merged or split, group by group: only those along which a bound varies are spread out."""
    old, new = list(call.first.shape), list(call.out.shape)
    return each(call.field_of_first(), lambda bound: _regroup(bound, old, new))


def _regroup(bound: Tensor, old: list[int], new: list[int]) -> Tensor:
    full, shape, spread = [], [], []
    i = j = 0
    while i < len(old) or j < len(new):
        first, start = i, j
        size_old = size_new = 1
        while (i == first and j == start) or size_old != size_new:
            if j == len(new) or (i < len(old) and size_old <= size_new):
                size_old *= old[i]
                i += 1
            else:
                size_new *= new[j]
                j += 1
        varies = any(bound.shape[d] > 1 for d in range(first, i))
        full += old[first:i] if varies else [1] * (i - first)
        shape += new[start:j] if varies else [1] * (j - start)
        spread += [varies] * (j - start)
    return _compact(bound.expand(full).reshape(shape)) if any(spread) else bound.reshape(shape)


def _concatenation(call: Call) -> Field:
    """Maps side by side; channels, along which no bound varies, count together."""
    tensors, dim = call["tensors"], call["dim"] % call.out.dim()
    stacked = call.out.dim() > tensors[0].dim()
    sizes = [1 if stacked else tensor.shape[dim] for tensor in tensors]
    nothing = torch.full((1,) * tensors[0].dim(), NOTHING)
    fields = [call.field_of.get(tensor, Field((nothing,) * 4)) for tensor in tensors]

    def join(bounds: tuple[Tensor, ...]) -> Tensor:
        if stacked:
            bounds = tuple(bound.unsqueeze(dim) for bound in bounds)
        elif all(bound.shape[dim] == 1 for bound in bounds):
            return reduce(torch.minimum, bounds)
        shape = _joint_shape(bound.select(dim, 0) for bound in bounds)
        spread = (bound.expand(*shape[:dim], size, *shape[dim:]) for bound, size in zip(bounds, sizes, strict=True))
        return _compact(torch.cat(list(spread), dim))

    return Field(tuple(map(join, zip(*(field.bounds for field in fields), strict=True))))


def _product(call: Call) -> Field:
    """Products of matrices; where both depend on the image (attention), each position meets every other."""
    names = [name for name in ("self", "mat1", "mat2", "batch1", "batch2") if name in call.args]
    left, right = names[-2:]
    fields = [call.field(name) for name in (left, right)]
    if all(fields):
        return _whole()
    dims = call[left].dim() - 1, call[right].dim() - 2  # those that are summed over
    mixed = [_mixed(field, [dim]) for field, dim in zip(fields, dims, strict=True) if field]
    return _unions([*mixed, *(field for name in names[:-2] if (field := call.field(name)))])


def _index_select(call: Call) -> Field:
    field, dim = call.field_of_first(), call["dim"] % call.first.dim()
    positions = call.value(call["index"])
    return _whole() if positions is None else _reach(field, dim, positions.view(-1, 1))


def _scatter(call: Call) -> Field:
    """Unpooling: a position may get what any index that may point there carries, and depends on that index."""
    into, index, dim = call["self"], call["index"], call["dim"] % call["self"].dim()
    fields = [field for name in ("src", "index") if name in call.args and (field := call.field(name))]
    placed = _placed(fields, _targets(call, "index"), dim, index.shape, into.shape[dim]) if fields else None
    return _unions([field for field in (call.field("self"), placed) if field])


def _targets(call: Call, name: str) -> list[Tensor]:
    """All positions that each index may point at; empty if they are not known."""
    field, value = call.field(name), call.value(call[name])
    if field is None:
        return [] if value is None else [value]
    return [row + column for row in field.rows for column in field.columns]


def _placed(fields: list[Field], targets: list[Tensor], dim: int, sizes: Sequence[int], length: int) -> Field:
    """What reaches each of `length` positions along `dim` from a tensor of `sizes`."""
    if not targets:
        return _whole()

    def place(bounds: tuple[Tensor, ...]) -> Tensor:
        shape = _joint_shape([*bounds, *targets])
        shape[dim] = sizes[dim]
        bound = reduce(torch.minimum, bounds).expand(shape)
        placed = torch.full([*shape[:dim], length + 1, *shape[dim + 1 :]], NOTHING)
        for target in targets:
            where = target.expand(shape)
            placed.scatter_reduce_(dim, where.where(where >= 0, length), bound, "amin")
        return _compact(placed.narrow(dim, 0, length))

    return Field(tuple(place(bounds) for bounds in zip(*(field.bounds for field in fields), strict=True)))


def _gather(call: Call) -> Field:
    """Positions that the image decides on: any may be meant."""
    if call.field("index") is None:
        raise NotImplementedError("receptive_field knows torch.gather with an index made of the image only")
    return _whole()


def _unpooling(call: Call) -> Field:
    """`F.max_unpool2d`, a scatter of flat maps."""
    leading, inner = list(call.first.shape[:-2]), list(call.first.shape)
    height, width = call["output_size"]
    flat, unpooled = [*leading, math.prod(inner[-2:])], [*leading, height * width]
    fields = [each(field, lambda bound: _regroup(bound, inner, flat)) for field in call.fields()]
    targets = [_regroup(target, inner, flat) for target in _targets(call, "indices")]
    placed = _placed([Field(field.bounds) for field in fields], targets, len(leading), flat, height * width)
    return each(placed, lambda bound: _regroup(bound, unpooled, [*leading, height, width]))


def _restrided(call: Call) -> Field:
    """What torch does to the layout of a map that it has pooled to 1 x 1."""
    field = call.field_of_first()
    if list(call["size"]) != list(call.first.shape) or any(bound.numel() > 1 for bound in field.bounds):
        raise NotImplementedError("receptive_field cannot follow torch.as_strided")
    return field


Rule = Callable[[Call], Field | Sequence[Field] | None]
RULES: dict[str, Rule] = {}
_names: dict[Rule, str] = {
    union: "_to_copy clone detach alias lift_fresh rsub floor_divide masked_fill where hardswish _prelu_kernel "
    "native_dropout native_batch_norm native_group_norm native_layer_norm log_sigmoid_forward",
    _fresh: "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty zero",
    _overwritten: "copy fill",
    _reduced: "mean sum amax amin max min argmax argmin any all var std var_mean logsumexp linalg_vector_norm topk "
    "_softmax _safe_softmax _log_softmax",
    _convolution: "convolution",
    _pooling: "max_pool2d_with_indices avg_pool2d",
    _adaptive_pooling: "_adaptive_avg_pool2d adaptive_max_pool2d",
    _resizing: "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d",
    _padding: "constant_pad_nd reflection_pad2d replication_pad2d",
    _pixel_shuffle: "pixel_shuffle",
    _view: "slice select permute transpose t unsqueeze squeeze expand split split_with_sizes unbind",
    _reshape: "view _unsafe_view",
    _restrided: "as_strided",
    _concatenation: "cat stack",
    _product: "mm bmm addmm baddbmm",
    _index_select: "index_select",
    _gather: "gather",
    _scatter: "scatter",
    _unpooling: "max_unpool2d",
}
for _rule, _functions in _names.items():
    RULES.update(dict.fromkeys(_functions.split(), _rule))
