"""Exports a trained network to a file that runs without this repository, once it has been compared with ours.

    python -m experiments.export CHECKPOINT --format onnx --dynamic
    python -m experiments.export CHECKPOINT --format onnx --dynamic --int8

The file takes float32 images (1, C, H, W) in [0, 1] and returns logits (1, num_classes, H, W); the normalisation is
part of it. Names and colours of the classes, and how images were read, are in its metadata. Formats: onnx, for ONNX
Runtime and whatever reads ONNX; pt2, of torch.export; torchscript. Without --dynamic it takes images of one --size.

It is computed at several sizes beside the network, on noise: where a logit differs by more than 1e-4 of the largest,
nothing is written. docs/export.md lists which format can hold which network.

--int8 writes a second ONNX file with weights and maps of 8 bits. It calibrates on training images and says what that
costs in IoU on validation images. The data are those of the run.json beside the checkpoint unless flags say otherwise.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt

from datamodules.base import Loading
from experiments.exporting.compared import compare, seconds
from experiments.exporting.formats import FORMATS, Runner, example, extra, prepared
from experiments.exporting.metadata import metadata
from experiments.exporting.quantised import check_data, cost, images_of, quantise
from experiments.runs.beside import run_beside, run_folder
from experiments.runs.run import Run
from experiments.runs.scored import alone
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, key_of, listed, load, lookup
from experiments.shell.class_flags import Choice, ClassParser, first_word, settings_of
from experiments.shell.command import command
from experiments.shell.ending import CannotWriteError
from experiments.shell.files import write_whole
from experiments.shell.flags import refuse
from lightning_modules.base import SegmentationModule

USAGE = "python -m experiments.export CHECKPOINT [--format NAME] [--dynamic] [--int8] [--data NAME] [options]"
Say = Callable[[str], None]


def parse_export(argv: list[str]) -> tuple[Path, Run | None, Run | None, argparse.Namespace]:
    """The checkpoint, the run it is of, the data for --int8 as a run, and the other flags."""
    word = first_word(
        argv,
        what="a checkpoint, such as outputs/.../checkpoints/last.ckpt",
        usage=USAGE,
        description=f"{__doc__}\nevery flag: CHECKPOINT --help",
    )
    checkpoint = Path(word)
    chosen, rest = Choice(f"--data takes one of {listed(DATAMODULES)}", data=None).parse_known_args(argv[1:])
    try:
        stored = run_beside(checkpoint)
        datamodule = None if stored is None else stored.datamodule
        if chosen.data is not None:
            datamodule = lookup("--data", chosen.data, DATAMODULES)
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    about = "" if datamodule is None else f"\n\nThe flags of the data below are those of {datamodule.__name__}."
    parser = ClassParser(
        verb="export",
        usage=USAGE,
        description=f"{__doc__}\ndata sets (--data): {listed(DATAMODULES)}{about}",
        chosen="after the CHECKPOINT",
    )
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="the kind of file that is written")
    parser.add_argument(
        "--dynamic", action="store_true", help="images of any height and width, in place of those of --size alone"
    )
    parser.add_argument(
        "--size",
        type=PositiveInt,
        nargs=2,
        default=[256, 256],
        metavar=("H", "W"),
        help="pixels of the images; with --dynamic those of the example",
    )
    parser.add_argument(
        "--out", type=Path | None, default=None, help="the file (default: named after the network, beside run.json)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="writes an ONNX file of 8 bits, too, and says what that costs in IoU"
    )
    parser.add_argument(
        "--images",
        type=PositiveInt,
        default=100,
        help="images of each split for --int8 at most, spread evenly: training calibrates, validation scores",
    )
    parser.add_argument("--threads", type=PositiveInt, default=os.cpu_count() or 1, help="threads of the timed runs")
    if datamodule is not None:
        parser.add_argument("--root", type=str, help="folder of the data, the same as --data.root")
        parser.add_class(settings_of(datamodule, Loading), "data", help="one of those listed above")
        if stored is not None and datamodule is stored.datamodule:
            parser.set_defaults({f"data.{name}": value for name, value in stored.data.items()})
        if any(action.dest == "data.root" for action in parser._actions):
            rest = [re.sub(r"^--root(?==|$)", "--data.root", word) for word in rest]
    args = parser.parse_args(rest, defaults=True)
    data = None
    if datamodule is not None:
        if args.root is not None:
            refuse(f"--root belongs to data in a folder, and {datamodule.__name__} has none")
        data = Run(module=SegmentationModule, datamodule=datamodule, data=args.data.as_dict())
    if args.int8 and data is None:
        refuse(
            f"--int8 calibrates on training images and scores on validation images, and there is no run.json beside "
            f"{checkpoint} to say which: give --data"
        )
    if args.int8 and args.format != "onnx":
        refuse(f"--int8 quantises by ONNX Runtime, which --format {args.format} is not for: give --format onnx")
    names = ("format", "dynamic", "size", "out", "int8", "images", "threads")
    return checkpoint, stored, data, argparse.Namespace(**{name: args[name] for name in names})


def check_place(path: Path) -> None:
    """ValueError where a file of that name exists, CannotWriteError where none can be made, before the work."""
    if os.path.lexists(path):
        raise ValueError(f"{path} exists: remove it, or choose another file with --out")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "not a folder" if not folder.is_dir() else "not to be written to"
        raise CannotWriteError(f"cannot write {path} ({folder} is {why}): choose another file with --out")


def run_export(checkpoint: Path, stored: Run | None, data: Run | None, args: argparse.Namespace, say: Say) -> None:
    """What the command does, once its flags are known."""
    format, size = FORMATS[args.format], (args.size[0], args.size[1])
    module = load(checkpoint)
    folder = run_folder(checkpoint) or checkpoint.parent
    out = Path(args.out or folder / f"{key_of(type(module), ARCHITECTURES)}.{format.suffix}")
    eight = out.with_name(f"{out.stem}.int8.onnx")
    for path in (out, eight) if args.int8 else (out,):
        check_place(path)
    if args.format == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            extra(package)
    datamodule = None
    if args.int8 and data is not None:
        datamodule = data.datamodule(**data.data)
        check_data(module, datamodule, None if args.dynamic else size)
    for line in alone(module):
        say(line)
    torch.set_num_threads(args.threads)
    network = prepared(module)
    sizes = "any" if args.dynamic else f"{size[0]} x {size[1]}"
    exported = format.export(network, size, args.dynamic, metadata(module, stored, sizes))
    runner = format.runner(exported.data, args.threads)
    say(compare(module, runner, size, args.dynamic, f"{args.format} of {type(module).__name__}").sentence)
    if exported.smallest is not None and exported.smallest > 2:
        say(f"images have at least {exported.smallest} pixels a side")
    files = {out: exported.data}
    runners: dict[str, Runner] = {"PyTorch": module, format.runtime: runner}
    if datamodule is not None:
        say(f"calibrating on {min(args.images, len(datamodule.dataset('train')))} training images")
        files[eight] = quantise(exported.data, images_of(datamodule.dataset("train"), args.images))
        runners["int8"] = format.runner(files[eight], args.threads)
        say(cost(module, datamodule.dataset("val"), args.images, runner, runners["int8"]).sentence)
    taken = seconds([*runners.values()], [example(module, size)])
    ours = taken[0]
    others = [f"{name} {1000 * s:.1f} ms ({s / ours:.2f} of that)" for name, s in zip(runners, taken, strict=True)][1:]
    on = f"{args.threads} CPU thread{'s' * (args.threads > 1)}"
    say(f"an image of {size[0]} x {size[1]} on {on}: PyTorch {1000 * ours:.1f} ms, {', '.join(others)}")
    for path, content in files.items():
        write_whole(path, lambda file, content=content: file.write(content), needed=len(content))  # type: ignore[misc]
        say(f"wrote {path}, {len(content) / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> None:
    with command("interrupted; nothing was written") as console:
        checkpoint, stored, data, args = parse_export(sys.argv[1:] if argv is None else argv)

        def say(line: str) -> None:
            console.print(line, soft_wrap=True, markup=False, highlight=False)

        run_export(checkpoint, stored, data, args, say)


if __name__ == "__main__":
    main()
