"""Divides the images of a data set into training, validation and test images, and writes the lists.

    python -m experiments.split DIR                              # 70, 15 and 15 %, into DIR/splits
    python -m experiments.split DIR --fractions 0.8 0.1 0.1 --seed 1
    python -m experiments.split DIR --group-by '^(p[0-9]+)_'     # all images of a patient in one split
    python -m experiments.split DIR --folds 5 --into folds       # DIR/folds/0 to 4: --data.splits folds/0

Each class is in its share of the images of each split. Images of one group are never in two splits: groups are those of
groups.csv, or what --group-by finds in the names, which is then written into groups.csv, so that intervals count them.
Equal pictures are in one split. Every file is checked as before a training.
split.json beside the lists says how they were made, to be cited. Nothing that is there already is changed.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from shlex import quote

import numpy as np
import rich.table
from rich.console import Console
from rich.text import Text

from datamodules.checks.pairs import Check
from datamodules.checks.problems import shown, told
from datamodules.files import FOLDER, GROUPS, SPLITS, quoted
from datamodules.layouts.source import Source
from datamodules.splitting import SERIES, Classes, divide, folds, groups_by, joined, series
from datamodules.verify import check_parts, examine
from experiments.evidence.sums import MIN_GROUPS
from experiments.shell.command import command
from experiments.shell.environment import command_line
from experiments.shell.files import write_atomic, write_json
from experiments.shell.flags import FolderParser, natural, positive

MADE = "split.json"


def main(argv: Sequence[str] | None = None) -> None:
    with command() as console:
        parser = FolderParser(description=__doc__)
        parser.add_argument("root", type=Path, metavar="DIR", help="folder of the data, or its dataset.yaml elsewhere")
        parser.add_argument(
            "--fractions",
            type=float,
            nargs=3,
            metavar=("TRAIN", "VAL", "TEST"),
            help="shares of the images (default: 0.7 0.15 0.15)",
        )
        parser.add_argument("--folds", type=positive, metavar="K", help="cross-validation: each image is tested once")
        parser.add_argument("--seed", type=natural, default=0, help="another division (default: 0)")
        parser.add_argument("--group-by", metavar="REGEX", help="what tells the group of an image in its name")
        parser.add_argument("--into", default=FOLDER, metavar="NAME", help="new folder within DIR (default: splits)")
        args = parser.parse_args(argv)
        source = Source(args.root, splits=args.into)
        _check(args, source)
        checks = _read(source)
        names, class_names = list(checks), source.classes.names
        holds = {name: np.isin(np.arange(len(class_names)), check.labels) for name, check in checks.items()}
        groups = _groups(args, source, names)
        args.fractions = None if args.folds else args.fractions or [0.7, 0.15, 0.15]
        pictures = {name: name if check.constant else check.picture for name, check in checks.items()}
        parts = divide(joined(groups, pictures), holds, args.fractions or [1.0] * args.folds, args.seed)
        divisions = folds(parts) if args.folds else [tuple(parts)]
        for number, division in enumerate(divisions):
            folder = source.folder / args.into / (str(number) if args.folds else "")
            lists = dict(zip(SPLITS, division, strict=True))
            console.print(_table(folder, lists, groups, holds, class_names))
            _write(folder, lists, groups, args, source)
        _warn(args, source, names, groups, divisions[0][2], console)
        if args.group_by and not source.has_groups:
            lines = "".join(f"{quoted(name)},{quoted(groups[name])}\n" for name in names)
            write_atomic(source.root / GROUPS, f"image,group\n{lines}")
            said = f"{shown(str(source.root / GROUPS))} has the groups, which intervals for other images count"
            console.print(said, markup=False, soft_wrap=True)
        if (stated := Source(args.root).layout.splits) != args.into:
            into = f"{args.into}/0" if args.folds else args.into
            other = "" if stated == FOLDER else f", or write splits: {into} into dataset.yaml, which has other ones"
            console.print(f"Train with: --data.splits {into}{other}", markup=False, soft_wrap=True)


def _check(args: argparse.Namespace, source: Source) -> None:
    """Raises ValueError for flags that do not go together, and where something would be replaced."""
    if args.folds and args.fractions:
        raise ValueError("--folds makes parts of equal size: leave out --fractions")
    if args.folds and args.folds < 3:
        raise ValueError(f"--folds must be at least 3, one each to test, to validate and to train, got {args.folds}")
    if not re.fullmatch(r"\w[\w-]*", args.into) or args.into in ("images", "masks"):
        raise ValueError(f"--into must be the name of a new folder, in letters, got {args.into!r}")
    if args.group_by and source.has_groups:
        raise ValueError(
            f"{shown(str(source.root / GROUPS))} has groups already, or group_by of dataset.yaml: leave out "
            "--group-by, or move them away"
        )
    target = source.folder / args.into
    if source.folder.is_dir() and not os.access(source.folder, os.W_OK):
        raise ValueError(
            f"{shown(str(source.folder))} cannot be written to: put a dataset.yaml elsewhere that has it as root, and "
            "name that file instead; the lists are then written beside it"
        )
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"{shown(str(target))} is there already, and nothing is replaced: remove it, or choose another with --into"
        )


def _read(source: Source) -> dict[str, Check]:
    """What is known of each image and its mask, by name. ValueError for bad files."""
    check_parts(source, lists=False)
    examined = examine(source, lists=False)
    if examined.problems:
        raise ValueError(told(source.root, examined.problems))
    return examined.checks


def _groups(args: argparse.Namespace, source: Source, names: Sequence[str]) -> dict[str, str]:
    """The group of each image; its own name where nothing tells."""
    if args.group_by is not None:
        return groups_by(args.group_by, names)
    groups, problems = source.groups(names)
    if problems:
        raise ValueError(f"in {shown(str(source.root))}: {problems[0].said.replace('the test split', 'all images')}")
    return {name: groups.get(name, name) for name in names}


def _warn(
    args: argparse.Namespace,
    source: Source,
    names: Sequence[str],
    groups: Mapping[str, str],
    test: Sequence[str],
    console: Console,
) -> None:
    """What the lists cannot do."""
    count = len({groups[name] for name in test})
    if (args.group_by or source.has_groups) and count < MIN_GROUPS:
        console.print(
            f"The test images are of {count} group{'s' * (count != 1)}: a report speaks of other images from "
            f"{MIN_GROUPS} on",
            markup=False,
            soft_wrap=True,
        )
    elif not args.group_by and not source.has_groups and (found := series(names)):
        console.print(
            f"The names look like {found} series, such as videos, scans or patients, whose images are in several "
            f"splits now, so that scores flatter. Each in one: add --group-by {quote(SERIES)} --into grouped, and "
            "train with --data.splits grouped",
            markup=False,
            soft_wrap=True,
        )


def _table(
    folder: Path,
    lists: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    holds: Mapping[str, Classes],
    class_names: Sequence[str],
) -> rich.table.Table:
    """Images and groups of each split, and the share of its images that hold each class."""
    title = Text(f"{shown(str(folder))}: images, groups, and the share of the images that hold each class")
    table = rich.table.Table("", *lists, title=title)
    table.add_row("images", *(str(len(names)) for names in lists.values()))
    table.add_row("groups", *(str(len({groups[name] for name in names})) for names in lists.values()))
    shares = [np.mean([holds[name] for name in names], axis=0) for names in lists.values()]
    for label, name in enumerate(class_names):
        table.add_row(Text(shown(name)), *(f"{of[label]:.0%}" for of in shares))
    return table


def _write(
    folder: Path,
    lists: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    args: argparse.Namespace,
    source: Source,
) -> None:
    """The lists, and how they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in lists.items():
        write_atomic(folder / f"{split}.txt", "".join(f"{name}\n" for name in names))
    content = {
        "command": command_line(),
        "seed": args.seed,
        "fractions": args.fractions,
        "folds": args.folds,
        "group_by": args.group_by or source.layout.group_by or (GROUPS if source.has_groups else None),
        "images": {split: len(names) for split, names in lists.items()},
        "groups": {split: len({groups[name] for name in names}) for split, names in lists.items()},
        "sha256": {s: sha256("".join(f"{n}\n" for n in names).encode()).hexdigest() for s, names in lists.items()},
    }
    write_json(folder / MADE, content)


if __name__ == "__main__":
    main()
