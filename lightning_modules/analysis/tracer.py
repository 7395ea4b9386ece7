"""Follows the fields of tensors through every function of torch that a network calls."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_modules.analysis.field import Call, ranked
from lightning_modules.analysis.field_rules import RULES, union

LARGEST_CONSTANT = 2**20  # elements; larger tensors that do not depend on the image are not computed
UNKNOWN = {"empty", "empty_like", "empty_strided", "new_empty"}  # memory as it was found


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the field of every tensor that is made inside the context, and computes the constants among them.

    `fields` holds the tensors that depend on the image; a network runs on the meta device. Positions that a network
    computes (`torch.arange`) are small and depend on sizes alone: they are computed aside, on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: Any = WeakTensorKeyDictionary()
        self.constants: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        follows = any(tensor in self.fields for tensor in tensors)
        name = function._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            if follows:
                raise NotImplementedError("receptive_field cannot follow a network that reads a value of its maps")
            if args[0] in self.constants:
                return self.constants[args[0]].item()
        if follows and name == "native_batch_norm":  # on the meta device a hundred functions of Python
            out = torch.empty_like(args[0]), torch.empty(0), torch.empty(0)
        elif follows and name.endswith("_") and torch.Tag.pointwise in function.tags:
            out = args[0]
        else:
            out = function(*args, **kwargs)
        if follows:
            self._follow(name, Call(self.fields, self.value, function, args, kwargs, out))
        elif name not in UNKNOWN and torch.Tag.nondeterministic_seeded not in function.tags:
            self._compute(function, args, kwargs, out)
        return out

    def value(self, tensor: Tensor) -> Tensor | None:
        return self.constants.get(tensor) if tensor.is_meta else tensor

    def _follow(self, name: str, call: Call) -> None:
        in_place = call.function._schema.is_mutable
        name = name.removesuffix("_") if in_place else name
        rule = union if torch.Tag.pointwise in call.function.tags else RULES.get(name)
        if rule is None:
            raise NotImplementedError(f"receptive_field has no rule for the function {call.function} of torch")
        result = rule(call)
        outs = list(call.out) if isinstance(call.out, list | tuple) else [call.out]
        for out, field in zip(outs, result if isinstance(result, list) else [result], strict=False):
            if in_place and field is not None and field is not self.fields.get(out):
                self._check_alone(out, call)
            if field is None:
                self.fields.pop(out, None)
            else:
                self.fields[out] = ranked(field, out.dim())

    def _check_alone(self, out: Tensor, call: Call) -> None:
        """Other views of the memory that is written to would keep the field that they had."""
        storage = out.untyped_storage()._cdata
        others = [t for t in self.fields if t is not out and t.untyped_storage()._cdata == storage]
        if others or (out._base is not None and out._base.shape != out.shape):
            raise NotImplementedError(f"receptive_field cannot follow {call.function} into a part of a tensor")

    def _compute(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        """The values of a small constant, from those of its arguments; a weight has none."""
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_meta]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        constant = all(self.value(tensor) is not None for tensor in tensors)
        if not constant or not made or sum(tensor.numel() for tensor in made) > LARGEST_CONSTANT:
            for tensor in made:
                self.constants.pop(tensor, None)
            return

        def on_cpu(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.value(value)
            return torch.device("cpu") if isinstance(value, torch.device) else value

        values = function(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
        values = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        for tensor, value in zip(made, values, strict=True):
            self.constants[tensor] = value
