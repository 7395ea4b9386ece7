"""The rows and columns of the image that the positions of a tensor depend on, and a call that hands them on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

WHOLE, NOTHING = -(2**40), 2**40  # as a bound of a field


class Field(NamedTuple):
    """What the positions of a tensor depend on.

    `bounds` are top, -bottom, left and -right, so that the union of two fields is the minimum of their bounds. Each has
    as many dimensions as the tensor, of length 1 where it does not vary. An index that a max pooling returned may
    point at any sum of one of `rows` and one of `columns` that is not negative.
    """

    bounds: tuple[Tensor, ...]
    rows: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()

    def span(self, axis: int) -> tuple[Tensor, Tensor]:
        """First and last row (axis 0) or column (axis 1) of each position."""
        return self.bounds[2 * axis], -self.bounds[2 * axis + 1]


def field_of_image(height: int, width: int) -> Field:
    """Each pixel (1, C, height, width) depends on itself."""
    rows, columns = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    return Field((rows, -rows, columns, -columns))


def each(field: Field, function: Callable[[Tensor], Tensor]) -> Field:
    return Field(*(tuple(map(function, part)) for part in field))


def ranked(field: Field, rank: int) -> Field:
    """Leading dimensions that broadcasting has added."""
    missing = (1,) * (rank - field.bounds[0].dim())
    return each(field, lambda bound: bound.view(missing + bound.shape)) if missing else field


class Call:
    """A call of a function of torch: its arguments by name, its result, and what is known of tensors.

    `field_of` holds the tensors that depend on the image; `value` gives what is in one that does not, None if unknown.
    """

    def __init__(
        self,
        field_of: Mapping[Tensor, Field],
        value: Callable[[Tensor], Tensor | None],
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        self.field_of, self.value, self.function, self.out = field_of, value, function, out
        self.rest = (args[1:], kwargs)  # as they were given
        schema = function._schema.arguments
        named = dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
        self.args = {argument.name: named.get(argument.name, argument.default_value) for argument in schema}

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def first(self) -> Tensor:
        return next(iter(self.args.values()))

    def field(self, name: str) -> Field | None:
        return self.field_of.get(self.args[name]) if isinstance(self.args[name], Tensor) else None

    def field_of_first(self) -> Field:
        name = next(iter(self.args))
        field = self.field(name)
        if field is None:
            raise NotImplementedError(f"receptive_field knows {self.function} with an image-dependent {name!r} only")
        return field

    def fields(self) -> list[Field]:
        """Of all arguments that have one."""
        tensors = [leaf for leaf in tree_leaves(self.args) if isinstance(leaf, Tensor)]
        return [field for tensor in tensors if (field := self.field_of.get(tensor)) is not None]
