"""Says what is wrong with a data set, what it holds, and what to type next.

    python -m experiments.check DIR
    python -m experiments.check DIR --page check.html     # with pictures: images under their labels, and a legend
    python -m experiments.check DIR --json                # the same for a program
    python -m experiments.check DIR --suggest dataset.yaml     # of files that lie otherwise: what says how to read them
    python -m experiments.check DIR --fix OUT             # a corrected copy in the plain layout

Every file is read, and none of them is changed. The exit status is 0 where the data can be trained with, and 2 where
not. A problem begins with the code of its kind, which docs/data.md explains. `experiments.train` checks the same by
itself.
"""

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

from datamodules.checks.problems import ERRORS, WARNINGS, Problem, shown, told
from datamodules.files import FOLDER
from datamodules.layouts.config import FILE
from datamodules.layouts.guess import suggest
from datamodules.layouts.meanings import Suggestion
from datamodules.layouts.palette import generated_palette
from datamodules.layouts.rewrite import Copy, rewrite
from datamodules.layouts.source import Source
from datamodules.splitting import SERIES, series
from datamodules.verify import Examined, check_parts, examine
from experiments.reports import checked
from experiments.shell.command import command
from experiments.shell.files import write_atomic
from experiments.shell.flags import FolderParser, positive

# Of data that a layout, or a copy in the plain one, may make readable.
OTHERWISE = {"E_MISSING_MASK", "E_ORPHAN_MASK", "E_EMPTY_DATASET", "E_MASK_MODE", "E_MASK_FORMAT", "E_MASK_PALETTES"}
OTHERWISE |= {"E_ALPHA", "E_BANDS", "E_IMAGE_MODE", "E_RANGE", "E_FORMAT", "E_LABEL_RANGE", "E_BINARY_0_255", "E_EXT"}


def main(argv: Sequence[str] | None = None) -> None:
    with command() as console:
        parser = FolderParser(description=__doc__)
        parser.add_argument("root", type=Path, metavar="DIR", help="folder of the data, or its dataset.yaml elsewhere")
        parser.add_argument("--splits", metavar="NAME", help="folder of the lists within DIR (default: splits)")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        parser.add_argument("--page", type=Path, metavar="FILE", help="HTML file with pictures, to be written")
        parser.add_argument("--pictures", type=positive, default=24, metavar="N", help="pictures on the page")
        parser.add_argument("--suggest", type=Path, metavar="FILE", help="new dataset.yaml for files as they lie")
        parser.add_argument("--fix", type=Path, metavar="OUT", help="new folder for a corrected copy of the data")
        args = parser.parse_args(argv)
        if args.suggest:
            _write_suggestion(args, console)
            return
        if args.fix:
            usable = _fix(args, console)
        else:
            usable = _check(args, console)
    sys.exit(0 if usable else 2)


def _check(args: argparse.Namespace, console: Console) -> bool:
    """Tells what the data are; whether they can be trained with."""
    try:
        source = Source(args.root, splits=args.splits)
        check_parts(source)
        examined = examine(source, moments=True)
        found = checked.facts(source, examined) | {"next": _next(source, examined)}
    except (ValueError, FileNotFoundError) as error:
        suggestion = _suggestion(args.root)
        if suggestion is None and not args.json:
            raise
        _tell_refused(args, error, suggestion, console)
        return False
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _tell(found, examined, console)
        if {problem.code for problem in examined.problems} & OTHERWISE and not _has_layout(args.root):
            _tell_suggestion(args, _suggestion(args.root), console)
    if args.page:
        write_atomic(args.page, checked.page(source, args.pictures, examined, found))
        sys.stderr.write(f"written: {shown(str(args.page))}\n")
    return not examined.problems


def _next(source: Source, examined: Examined) -> list[dict[str, str]]:
    """What to type next, each with its reason."""
    root, said = shown(quote(source.typed)), list[dict[str, str]]()
    if not source.has_groups and (found := series(list(examined.checks))):
        why = f"The names look like {found} series, such as videos, scans or patients, whose images go together."
        into = " --into grouped" * (source.folder / FOLDER).exists()
        said.append({"why": why, "type": f"python -m experiments.split {root} --group-by {quote(SERIES)}{into}"})
    if examined.problems:
        return said
    import torch  # slow to import, and the checks need neither of these

    from datamodules.folder import FolderDataModule
    from experiments.runs.chosen import scale_of, word

    stated = source.layout.splits
    arguments = {"root": source.typed, **({"splits": stated} if isinstance(stated, str) and stated != FOLDER else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which are told of already
        scale = scale_of(FolderDataModule, arguments, full_size=torch.cuda.is_available())
    data, chosen = (
        " ".join(f"--data.{name} {shown(word(value))}" for name, value in values.items())
        for values in (arguments, scale.data)
    )
    out = shown(quote(f"outputs/train/{source.root.resolve().name}"))
    train = f"python -m experiments.train --model unet --data folder {data} --out {out}"
    said.append({"why": f"{scale.reason} Training chooses them by itself, and a recipe with them.", "type": train})
    show = f"python -m experiments.show --data folder {data} {chosen}"
    said.append({"why": "The images that are trained on then:", "type": show})
    return said


def _has_layout(root: Path) -> bool:
    return root.is_file() or (root / FILE).is_file()


def _suggestion(root: Path) -> Suggestion | None:
    return suggest(root) if root.is_dir() and not _has_layout(root) else None


def _tell_refused(args: argparse.Namespace, error: Exception, suggestion: Suggestion | None, console: Console) -> None:
    """Of data whose parts are not where the plain layout has them."""
    said = str(error).partition(". Data in another layout need")[0]
    problem = Problem(getattr(error, "code", "E_LAYOUT"), said)
    if args.json:
        found = {"root": str(args.root), "usable": False, "problems": [{"code": problem.code, "said": problem.said}]}
        found |= {"warnings": [], "suggestion": suggestion.layout if suggestion else None}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console.print(told(args.root, [problem]), markup=False, soft_wrap=True)
    _tell_suggestion(args, suggestion, console)


def _tell_suggestion(args: argparse.Namespace, suggestion: Suggestion | None, console: Console) -> None:
    root = shown(quote(str(args.root)))
    if suggestion is not None:
        lines = [f"Read as they lie, by {shown(str(args.root / FILE))}, which this makes:"]
        lines += [f"  python -m experiments.check {root} --suggest {shown(quote(str(args.root / FILE)))}"]
        lines += ["", *(f"  {line}" for line in suggestion.text().splitlines()), ""]
        console.print("\n".join(lines), markup=False, soft_wrap=True)
    said = f"Or a corrected copy in the plain layout:\n  python -m experiments.check {root} --fix OUT"
    console.print(said, markup=False, soft_wrap=True)


def _write_suggestion(args: argparse.Namespace, console: Console) -> None:
    if not args.root.is_dir():
        raise FileNotFoundError(f"{shown(str(args.root))} is no folder: name the one with images and masks")
    if os.path.lexists(args.suggest):
        raise ValueError(
            f"{shown(str(args.suggest))} is there already, and nothing is replaced: choose another --suggest"
        )
    suggestion = suggest(args.root)
    if suggestion is None:
        raise ValueError(
            f"{shown(str(args.root))}: no two kinds of files go together as images and masks; docs/data.md "
            f"says how to write a {FILE}"
        )
    elsewhere = os.path.realpath(args.suggest.parent) != os.path.realpath(args.root)
    where = f"root: {json.dumps(str(args.root.resolve()))}\n" if elsewhere or args.suggest.name != FILE else ""
    write_atomic(args.suggest, where + suggestion.text())
    console.print(suggestion.text(), markup=False, soft_wrap=True, end="")
    root = shown(quote(str(args.suggest if where else args.root)))
    said = f"written: {shown(str(args.suggest))}. Rename the classes in it, then: python -m experiments.check {root}"
    console.print(said, markup=False, soft_wrap=True)


def _fix(args: argparse.Namespace, console: Console) -> bool:
    """Writes the copy and tells what was changed; whether it can be trained with."""
    given, suggestion = {"splits": args.splits}, None
    try:
        source = Source(args.root, **given)
        check_parts(source, lists=False)
        needed = not source.usable or all(_of_colours(source, name) for name in source.usable[:3])
    except (ValueError, FileNotFoundError):
        if _has_layout(args.root):
            raise
        needed = True
    if needed and (suggestion := _suggestion(args.root)) is not None:
        console.print("Read by this layout, which is found from the files:", markup=False)
        console.print("".join(f"  {line}\n" for line in suggestion.text().splitlines()), markup=False, soft_wrap=True)
        source = Source(args.root, **suggestion.layout)
        check_parts(source, lists=False)
    elif needed:
        source = Source(args.root, **given)
        check_parts(source, lists=False)
    with console.status("copying") as status:
        palette = source.palette or generated_palette(len(source.classes.names))
        made = rewrite(source, args.fix, palette, lambda said: status.update(f"copying {said}"))
    _tell_copy(args, made, console)
    copy = Source(args.fix)
    examined = examine(copy, moments=True)
    _tell(checked.facts(copy, examined) | {"next": _next(copy, examined)}, examined, console)
    return not examined.problems


def _of_colours(source: Source, name: str) -> bool:
    """Whether a mask in the plain layout holds colours, which only a layout can give a class."""
    try:
        return source.strict and bool(source.labels(name).ndim != 2)
    except ValueError:
        return True


def _tell_copy(args: argparse.Namespace, made: Copy, console: Console) -> None:
    table = rich.table.Table("changed", "how many", title=f"{shown(str(args.fix))}, listed in its changes.csv")
    for kind, count in made.kinds().items():
        table.add_row(Text(shown(kind)), str(count))
    console.print(table)
    for name, why in made.left_out[:3]:
        console.print(f"left out: {shown(name)}: {shown(why)}", markup=False, soft_wrap=True)
    if len(made.left_out) > 3:
        console.print(f"left out: {len(made.left_out) - 3} more, see changes.csv", markup=False)


def _tell(found: Mapping[str, Any], examined: Examined, console: Console) -> None:
    console.print(checked.verdict(found), markup=False, soft_wrap=True, style="bold")
    if examined.problems:
        console.print(told(found["root"], examined.problems), markup=False, soft_wrap=True)
    for problem in examined.warnings:
        console.print(f"{problem.code}: {problem.said}", markup=False, soft_wrap=True)
    kinds = Counter(problem.code for problem in [*examined.problems, *examined.warnings])
    if kinds:
        table = rich.table.Table("code", "what", "how many")
        for code, count in kinds.items():
            table.add_row(code, (ERRORS | WARNINGS)[code], str(count))
        console.print(table)
    head, rows = checked.table(found)
    table = rich.table.Table(*head, title="images, and the share of the labelled pixels that each class has")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for line in checked.lines(found):
        console.print(line, markup=False, soft_wrap=True)
    for step in found["next"]:
        console.print(f"{step['why']}\n  {step['type']}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
