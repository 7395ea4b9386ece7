"""Splits of a data set by the images' classes and groups: see `python -m experiments.split`."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.bool_]  # (num_classes,), which of them an image holds
Parts = list[list[str]]  # the names in each part


def divide(groups: Mapping[str, str], holds: Mapping[str, Classes], shares: Sequence[float], seed: int) -> Parts:
    """The images in parts of these shares, each group whole in one part, each class spread over the parts alike.

    `groups` has the group of each image, `holds` its classes. The class that the fewest images left over have is dealt
    out first, its largest group to the part that lacks the most images of it. Sechidis et al. 2011, Algorithm 1, whose
    examples are groups here. Equal arguments give equal parts; `seed` decides where groups are alike.

    Raises ValueError for shares that are no numbers above 0, and for fewer groups than parts.
    """
    if len(shares) < 2 or not all(0 < share < np.inf for share in shares):
        raise ValueError(f"shares must be two numbers above 0 or more, got {', '.join(map(str, shares))}")
    members: dict[str, list[str]] = {}
    for name in sorted(groups):
        members.setdefault(groups[name], []).append(name)
    if len(members) < len(shares):
        raise ValueError(f"{len(members)} groups cannot be divided into {len(shares)} parts, as no group is cut")
    order = np.random.default_rng(seed).permutation(len(members))
    units = [list(members)[position] for position in order]
    # (groups, classes + 1): how many images hold each class; behind the last class how many there are.
    counts = np.stack([np.append(np.sum([holds[n] for n in members[u]], axis=0), len(members[u])) for u in units])
    # (parts, classes + 1): how many of them a part still lacks.
    lacks = np.outer(np.array(shares) / sum(shares), counts.sum(axis=0))
    left = np.ones(len(units), dtype=bool)
    parts: Parts = [[] for _ in shares]

    def deal(unit: int, key: int) -> None:
        most = max(range(len(parts)), key=lambda part: (lacks[part, key], lacks[part, -1]))
        empty = [part for part, names in enumerate(parts) if not names]
        if len(empty) == left.sum() and most not in empty:  # each part gets a group
            most = max(empty, key=lambda part: lacks[part, key])
        parts[most] += members[units[unit]]
        lacks[most] -= counts[unit]
        left[unit] = False

    while left.any():
        remaining = counts[left, :-1].sum(axis=0)
        key = int(np.argmin(np.where(remaining > 0, remaining, np.inf))) if remaining.any() else -1
        candidates = np.flatnonzero(left & (counts[:, key] > 0))
        for unit in candidates[np.argsort(-counts[candidates, key], kind="stable")].tolist():
            deal(unit, key)
    return [sorted(names) for names in parts]


def folds(parts: Parts) -> list[tuple[list[str], list[str], list[str]]]:
    """Training, validation and test images of each fold: a part is tested, the next one validates, the rest train."""
    count = len(parts)
    made = []
    for fold in range(count):
        val = (fold + 1) % count
        train = [name for part, names in enumerate(parts) if part not in (fold, val) for name in names]
        made.append((sorted(train), parts[val], parts[fold]))
    return made


def groups_by(pattern: str, names: Sequence[str]) -> dict[str, str]:
    """The group of each name: what the first parentheses of the pattern match in it, or all that it matches.

    Raises ValueError for what is no regular expression, and for names that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--group-by must be a regular expression, got {pattern!r} ({error})") from None
    found = {name: compiled.search(name) for name in names}
    if lacking := [name for name, match in found.items() if match is None]:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(
            f"--group-by {pattern!r} matches nothing in {', '.join(lacking[:3])}{more}: every image needs a group"
        )
    return {name: (match[1] if compiled.groups else match[0]) or "" for name, match in found.items() if match}
