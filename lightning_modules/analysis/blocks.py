"""The blocks that a network is drawn with, and which one's map goes into which: of a module on the meta device."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_modules.analysis.calls import RESIZES, Calls, words
from lightning_modules.analysis.flow import Op

if TYPE_CHECKING:
    from lightning_modules.base import SegmentationModule

FEW, MANY = 7, 27  # blocks: a network is opened further below the one, and no further beyond the other
JOINS = {"cat": "concat", "add": "add", "maximum": "max", "stack": "stack"}
STACKED = {"sum": "add", "amax": "max", "max": "max", "mean": "mean"}  # of what was stacked before
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)

Role = Literal["image", "encoder", "pool", "convolution", "up", "scores", "logits"]


@dataclass(frozen=True)
class Block:
    """A module, some that follow each other, or a function that is called between them.

    Args:
        name: path in the network, "" for a function
        kind: what it does, in words
        role: by which it is coloured
        channels: of the map that it returns
        size: height and width of that map; None for values of points
        stride: pixels of the image from one unit of the map to the next; None where the map does not grow with it
        calls: how often it is called for one image
    """

    name: str
    kind: str
    role: Role
    channels: int
    size: tuple[int, int] | None
    stride: float | None
    calls: int = 1


@dataclass(frozen=True)
class Edge:
    """The map of a block goes into another one: numbers of the two, and how it meets what else goes there."""

    source: int
    target: int
    join: str = ""


@dataclass(frozen=True)
class Drawing:
    """Blocks in the order of calls, the image first and the logits last, and the edges, which all lead forward."""

    blocks: list[Block]
    edges: list[Edge]
    size: tuple[int, int]  # of the image


@dataclass(frozen=True)
class _Part:
    """What becomes a block: some calls, and the paths of the modules that make them."""

    ops: tuple[int, ...]
    paths: tuple[str, ...] = ()  # none for a function


def drawing_of(module: "SegmentationModule", height: int, width: int) -> Drawing:
    """What happens to one image of height x width while `module`, which is on the meta device, predicts it.

    The tree of modules is opened where its parts return maps of several sizes or stand beside each other, as long as
    the blocks remain few. Normalisation, activation, crops and sums have none: they belong to the arrows. What cannot
    be followed, as where a number is read from a map, keeps its block and has no arrow.
    """
    return _Cut(module, height, width).drawing()


class _Cut(Calls):
    def drawing(self) -> Drawing:
        parts = self.parts
        owner, sources = self._sources(parts)
        found: dict[tuple[int, int], str] = {}
        for number, op in enumerate(self.ops):
            for place, source in enumerate(op.inputs if number in owner else ()):
                for start, join in sources[source].items():
                    if place == {"max_unpool2d": 1, "scatter": 0}.get(op.name):
                        join = "indices"
                    if start != owner[number]:
                        found[start, owner[number]] = found.get((start, owner[number])) or join
        last = len(parts)
        for output in self.flow.outputs:
            found |= {(start, last): join for start, join in sources[output].items()}
        blocks = [self._block(part) for part in parts]
        logits = self.ops[self.flow.outputs[0]] if self.flow.outputs else self.ops[-1]
        blocks.append(Block("", "logits", "logits", logits.shape[0], self.size, 1.0))
        order, kept = _forward(len(blocks), found)
        edges = sorted((order.index(start), order.index(end), found[start, end]) for start, end in kept)
        return Drawing([blocks[number] for number in order], [Edge(*edge) for edge in edges], self.size)

    @cached_property
    def parts(self) -> list[_Part]:
        """The image, and what the network is cut into, in the order of first calls."""
        whole = _Part(tuple(self.inside.get("network", ())), ("network",))
        now = self._opened(whole) if whole.ops else []
        while opened := self._next(now):
            now = [new for part in now for new in opened.get(part, [part])]
        return sorted([_Part((0,)), *now], key=lambda part: part.ops[0])

    def _next(self, now: Sequence[_Part]) -> dict[_Part, list[_Part]]:
        """What is opened next, and what is in it: what tells something, or anything while the blocks are few."""
        for few in (False, True):
            for group in self._groups(now):
                opened = {part: self._opened(part) for part in group}
                grown = len(now) + sum(len(some) - 1 for some in opened.values())
                wanted = len(now) < FEW if few else any(self._telling(part, some) for part, some in opened.items())
                if wanted and len(now) < grown <= MANY:
                    return opened
        return {}

    def _groups(self, parts: Sequence[_Part]) -> Iterator[list[_Part]]:
        """The modules that can be opened, with those beside them in one list of modules; the outer ones first."""
        groups: dict[str, list[_Part]] = {}
        for part in parts:
            if len(part.paths) != 1 or self._often(part.paths[0]):
                continue
            path = part.paths[0]
            if len(self._opened(part)) > 1:
                groups.setdefault(re.sub(r"\.\d+$", "", path), []).append(part)
        yield from sorted(groups.values(), key=lambda group: (group[0].paths[0].count("."), len(group)))

    def _opened(self, part: _Part) -> list[_Part]:
        """What matters in a module: modules that it calls, and functions."""
        (path,) = part.paths
        children: dict[str, None] = {}
        functions: list[tuple[int, int]] = []  # with the number of the call of this module
        for number in self.inside[path]:
            op = self.ops[number]
            names = [name for name, _ in op.within]
            at = len(names) - 1 - names[::-1].index(path)
            if at + 1 < len(names):
                children[names[at + 1]] = None
            elif self.shown(number):
                functions.append((number, op.within[at][1]))
        inner = [_Part(tuple(self.inside[child]), (child,)) for child in children if self._matters(child)]
        own: dict[Any, list[int]] = {}  # those that are one in every call, and in every turn of a loop
        count: Counter[tuple[str, int]] = Counter()
        sources = self._sources(inner)[1] if self._loops(path) else None
        for number, call in functions:
            name = self.ops[number].name
            turn = frozenset(s for i in self.ops[number].inputs for s in sources[i]) if sources else count[name, call]
            own.setdefault((name, turn), []).append(number)
            count[name, call] += 1
        if len(inner) == 1 and not own:  # a wrapper
            return self._opened(inner[0]) if inner[0].paths != part.paths else [part]
        found = [*inner, *(_Part(tuple(numbers)) for numbers in own.values())]
        return self._runs(sorted(found, key=lambda one: one.ops[0])) or [part]

    def _loops(self, path: str) -> bool:
        """Whether a module calls one of its own several times."""
        pairs = {pair for number in self.inside[path] for pair in pairwise(self.ops[number].within)}
        calls = Counter((caller, called) for caller, (called, _) in pairs if caller[0] == path)
        return any(count > 1 and self._matters(called) for (_, called), count in calls.items())

    def _matters(self, path: str) -> bool:
        module = self.modules[path]
        if isinstance(module, NORMS):
            return False
        return any(map(self.shown, self.inside[path])) or any(True for _ in module.parameters(recurse=False))

    def _runs(self, parts: list[_Part]) -> list[_Part]:
        """Modules of one kind whose maps have one shape, and of which each goes into the next alone, as one part."""
        _, sources = self._sources(parts)
        owner = {number: at for at, part in enumerate(parts) for number in part.ops}
        fed: list[set[int]] = [set() for _ in parts]
        for number, at in owner.items():
            for source in self.ops[number].inputs:
                fed[at] |= sources[source].keys() - {at}
        feeds = [{at for at, some in enumerate(fed) if one in some} for one in range(len(parts))]
        runs: list[list[_Part]] = []
        for at, part in enumerate(parts):
            before = parts[at - 1] if at else part
            alike = part.paths and before.paths and at and self._kind(part) == self._kind(before)
            siblings = alike and part.paths[0].rpartition(".")[0] == before.paths[0].rpartition(".")[0]
            same = siblings and self._last(part).shape == self._last(before).shape
            if same and fed[at] == {at - 1} and feeds[at - 1] == {at}:
                runs[-1].append(part)
            else:
                runs.append([part])
        return [
            _Part(tuple(n for one in run for n in one.ops), tuple(path for one in run for path in one.paths))
            for run in runs
        ]

    def _sources(self, parts: Sequence[_Part]) -> tuple[dict[int, int], list[dict[int, str]]]:
        """Which part makes a call; and of each call the parts whose maps are in its result, with how they met."""
        owner = {number: at for at, part in enumerate(parts) for number in part.ops}
        sources: list[dict[int, str]] = []
        for number, op in enumerate(self.ops):
            if number in owner:
                sources.append({owner[number]: ""})
                continue
            some = [sources[source] for source in op.inputs]
            met: dict[int, str] = {}
            for one in some:
                met |= {start: join for start, join in one.items() if join or start not in met}
            if op.name in JOINS and len({tuple(one) for one in some}) > 1:
                met = dict.fromkeys(met, JOINS[op.name])
            elif op.name in STACKED and "stack" in met.values():
                met = dict.fromkeys(met, STACKED[op.name])
            sources.append(met)
        return owner, sources

    def _often(self, path: str) -> bool:
        """Whether its class is one of which the network is built, such as a residual block."""
        kind = type(self.modules[path])
        return not _of_torch(kind) and sum(type(self.modules[other]) is kind for other in self.inside) > 2

    def _telling(self, whole: _Part, parts: Sequence[_Part]) -> bool:
        """Whether the parts of one, or theirs, return maps of several strides, or do not follow each other alone."""
        inner = [part for part in parts if part != whole and len(part.paths) == 1 and not self._often(part.paths[0])]
        return self._differ(whole, parts) or any(self._telling(part, self._opened(part)) for part in inner)

    def _differ(self, whole: _Part, parts: Sequence[_Part]) -> bool:
        maps = [self._place(part) for part in parts if len(self._last(part).shape) == 3]
        if len(parts) < 2 or not maps:
            return False
        _, sources = self._sources(parts)
        chain = all(
            any(at - 1 in sources[source] for number in part.ops for source in self.ops[number].inputs)
            for at, part in enumerate(parts)
            if at
        )
        if chain and len(parts) <= 3 and self.stride(whole.ops[0]) == self.stride(self._place(whole)):
            return False
        return not chain or len({self.stride(number) for number in maps}) > 1

    def _last(self, part: _Part) -> Op:
        return self.ops[self._place(part)]

    def _place(self, part: _Part) -> int:
        """The call of a part that returns its map: of a module its first call, of a function in a loop the last."""
        if not part.paths:
            first = part.ops[-1]
            after = next((n for n in range(first, len(self.ops)) if len(self.ops[n].shape) == 3), first)
            return after if after - first < 2 else first  # a flat map gets its shape back
        path = part.paths[-1]
        made = [number for number in self.inside[path] if (path, 1) in self.ops[number].within] or self.inside[path]
        return next((n for n in reversed(made) if len(self.ops[n].shape) == 3), made[-1])

    def _block(self, part: _Part) -> Block:
        last = self._last(part)
        size = (last.shape[1], last.shape[2]) if len(last.shape) == 3 else None
        calls = max((call for n in part.ops for path, call in self.ops[n].within if path in part.paths), default=1)
        return Block(
            _name(part.paths),
            self._kind(part) if part.ops != (0,) else "image",
            self._role(part),
            last.shape[0],
            size,
            self.stride(self._place(part)),
            calls if part.paths else len(part.ops),
        )

    def _role(self, part: _Part) -> Role:
        if part.ops == (0,):
            return "image"
        shown = [number for number in part.ops if self.shown(number)]
        strides = [[self.stride(n) or math.inf for n in (*self.ops[number].inputs[-1:], number)] for number in shown]
        resized = [self.ops[n].transposed or self.ops[n].name in RESIZES for n in shown]
        into = self.stride(part.ops[0]) if part.paths else strides[0][0]
        if any(resized) and (self.stride(self._place(part)) or math.inf) < (into or math.inf):
            return "up"
        held = any(True for path in part.paths for _ in self.modules[path].parameters())
        if not held and (not part.paths or shown):
            return "pool"
        if self._last(part).shape[0] == self.num_classes:
            return "scores"
        return "encoder" if any("encoder" in path.split(".") for path in part.paths) else "convolution"

    def _kind(self, part: _Part) -> str:
        if len(part.paths) > 1:
            kinds = self._kind(_Part(tuple(self.inside[part.paths[0]]), part.paths[:1]))
            return f"{len(part.paths)} x {kinds}"
        ops = [self.ops[number] for number in part.ops]
        if not part.paths:
            return words(ops[0])
        path = part.paths[0]
        module = self.modules[path]
        if not _of_torch(type(module)):
            resized = [self.ops[n].inputs[0] for n in part.ops if self.ops[n].name in RESIZES and self.ops[n].inputs]
            bins = [self.ops[n].shape[1:] for n in resized if len(self.ops[n].shape) == 3 and not self.stride(n)]
            return type(module).__name__ + (f" {bins[0][0]} x {bins[0][1]}" if bins else "")
        inner = [type(child) for child in module.children() if any(True for _ in child.parameters())]
        if isinstance(module, nn.Sequential) and len({*inner}) == 1 and not _of_torch(inner[0]):
            return f"{len(inner)} x {inner[0].__name__}" if len(inner) > 1 else inner[0].__name__
        first = [n for n in part.ops if (path, 1) in self.ops[n].within and self.shown(n)]
        found = Counter(_separable([words(self.ops[number]) for number in first]))
        told = [f"{count} x {word}" if count > 1 else word for word, count in found.items()]
        return ", ".join(told[:2]) + (", ..." if len(told) > 2 else "") or type(module).__name__


def _forward(count: int, found: Iterable[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """An order of blocks in which edges lead forward, near that of calls; and the edges but those of a loop."""
    kept: list[tuple[int, int]] = []
    before: list[set[int]] = [set() for _ in range(count)]  # all that leads to a block
    for start, end in sorted(found, key=lambda edge: (edge[0] > edge[1], edge)):  # first those in the order of calls
        if end in before[start]:
            continue
        kept.append((start, end))
        for block in range(count):
            if block == end or end in before[block]:
                before[block] |= before[start] | {start}
    order: list[int] = []
    while len(order) < count:
        order.append(next(b for b in range(count) if b not in order and before[b] <= {*order}))
    return order, kept


def _of_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.")


def _separable(told: Sequence[str]) -> Iterator[str]:
    """Depthwise and pointwise convolutions that follow each other as one."""
    for before, word, after in zip(["", *told], told, [*told[1:], ""], strict=False):
        if word.startswith("depthwise") and after == "conv 1x1":
            yield word.replace("depthwise", "separable")
        elif word != "conv 1x1" or not before.startswith("depthwise"):
            yield word


def _name(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    first, last = paths[0].removeprefix("network").removeprefix("."), paths[-1].rpartition(".")[2]
    return first if len(paths) == 1 else f"{first} to {last}"
