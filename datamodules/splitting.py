"""Splits of a data set by the images' classes and groups: see `python -m experiments.split`."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.bool_]  # (num_classes,), which of them an image holds
Floats = NDArray[np.float64]
Parts = list[list[str]]  # the names in each part

SERIES = r"^(.*?)[-_. ]?\d+$"  # a name but its number: frames of a video, slices of a scan
TRIES = 8  # orders of the groups


def divide(groups: Mapping[str, str], holds: Mapping[str, Classes], shares: Sequence[float], seed: int) -> Parts:
    """The images in parts of these shares, each group whole in one part, each class in its share of the images of each.

    `groups` has the group of each image, `holds` its classes. Of several divisions the one with the least cost is
    taken: rare classes first (Sechidis et al. 2011, Algorithm 1, whose examples are groups here), or large groups
    first, each in some orders that `seed` draws. Equal arguments give equal parts.

    Raises ValueError for shares that are no numbers above 0, and for fewer groups than parts.
    """
    if len(shares) < 2 or not all(0 < share < np.inf for share in shares):
        raise ValueError(f"shares must be two numbers above 0 or more, got {', '.join(map(str, shares))}")
    members: dict[str, list[str]] = {}
    for name in sorted(groups):
        members.setdefault(groups[name], []).append(name)
    if len(members) < len(shares):
        raise ValueError(f"{len(members)} groups cannot be divided into {len(shares)} parts, as no group is cut")
    # (groups, classes + 1): how many images hold each class; behind the last class how many there are.
    counts = np.array([[*np.sum([holds[name] for name in of], axis=0), len(of)] for of in members.values()], float)
    wanted, generator = np.array(shares) / sum(shares), np.random.default_rng(seed)
    best, least = np.zeros(len(members), dtype=int), np.inf
    for _ in range(TRIES):
        order = generator.permutation(len(members))
        for deal in (_rare_first, _large_first):
            parts = np.empty(len(members), dtype=int)
            parts[order] = deal(counts[order], wanted)
            if (cost := _cost(counts, parts, wanted)) < least - 1e-12:
                best, least = parts, cost
    units = list(members.values())
    return [
        sorted(name for unit in np.flatnonzero(best == part) for name in units[unit]) for part in range(len(wanted))
    ]


def _cost(counts: Floats, parts: NDArray[np.int_], wanted: Floats) -> float:
    """How far sizes and classes are from the shares, and a point for each class that a part lacks and could have."""
    held = np.stack([counts[parts == part].sum(axis=0) for part in range(len(wanted))])
    whole = counts.sum(axis=0)
    known = whole > 0
    off = np.abs(held[:, known] / whole[known] - wanted[:, None]).sum(axis=0)
    could = (counts > 0).sum(axis=0)[known] >= len(wanted)
    lacking = np.count_nonzero((held[:, known] == 0) & could)
    return float(2 * off[-1] + (off[:-1].mean() if len(off) > 1 else 0.0) + lacking)


def _rare_first(counts: Floats, wanted: Floats) -> NDArray[np.int_]:
    """The class that the fewest images left over have is dealt out first, to the part that lacks the most of it."""
    lacks, held = np.outer(wanted, counts.sum(axis=0)), np.zeros((len(wanted), counts.shape[1]))
    left, parts = np.ones(len(counts), dtype=bool), np.zeros(len(counts), dtype=int)
    while left.any():
        remaining = counts[left, :-1].sum(axis=0)
        key = int(np.argmin(np.where(remaining > 0, remaining, np.inf))) if remaining.any() else counts.shape[1] - 1
        units = np.flatnonzero(left & (counts[:, key] > 0))
        units = units[np.argsort(-counts[units, key], kind="stable")]
        for position, unit in enumerate(units.tolist()):
            without = np.flatnonzero(held[:, key] == 0)  # the last ones go where the class would be missing
            among = without if 0 < len(units) - position <= len(without) else np.arange(len(wanted))
            part = int(among[np.lexsort((-lacks[among, -1], -lacks[among, key]))[0]])
            parts[unit], left[unit] = part, False
            lacks[part] -= counts[unit]
            held[part] += counts[unit]
    return parts


def _large_first(counts: Floats, wanted: Floats) -> NDArray[np.int_]:
    """Large groups first, each to the part that lacks the most images; the last ones to parts that have none."""
    lacks, parts = wanted * counts[:, -1].sum(), np.zeros(len(counts), dtype=int)
    empty = set(range(len(wanted)))
    for position, unit in enumerate(np.argsort(-counts[:, -1], kind="stable").tolist()):
        among = sorted(empty) if 0 < len(counts) - position <= len(empty) else list(range(len(wanted)))
        parts[unit] = part = max(among, key=lambda part: lacks[part])
        lacks[part] -= counts[unit, -1]
        empty.discard(part)
    return parts


def folds(parts: Parts) -> list[tuple[list[str], list[str], list[str]]]:
    """Training, validation and test images of each fold: a part is tested, the next one validates, the rest train."""
    count = len(parts)
    made = []
    for fold in range(count):
        val = (fold + 1) % count
        train = [name for part, names in enumerate(parts) if part not in (fold, val) for name in names]
        made.append((sorted(train), parts[val], parts[fold]))
    return made


def joined(groups: Mapping[str, str], pictures: Mapping[str, str]) -> dict[str, str]:
    """The same groups, but those that have a picture in common are one; `pictures` has the same for equal ones."""
    home = {group: group for group in groups.values()}

    def first(group: str) -> str:
        while home[group] != group:
            group = home[group]
        return group

    seen: dict[str, str] = {}
    for name, picture in pictures.items():
        home[first(groups[name])] = first(seen.setdefault(picture, groups[name]))
    return {name: first(group) for name, group in groups.items()}


def groups_by(pattern: str, names: Sequence[str]) -> dict[str, str]:
    """The group of each name: what the first parentheses of the pattern match in it, or all that it matches.

    Where that is empty, the image stands alone. Raises ValueError for what is no regular expression, and for names that
    it does not match.
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
    groups = {name: (match[1] if compiled.groups else match[0]) or "" for name, match in found.items() if match}
    return {name: group.strip() or name for name, group in groups.items()}


def series(names: Sequence[str]) -> int:
    """How many series the numbered names make; 0 where they are none, or one, or hardly longer than one image."""
    if not names or not all(re.search(SERIES, name) for name in names):
        return 0
    groups = len({*groups_by(SERIES, names).values()})
    return groups if 1 < groups <= len(names) / 3 else 0
