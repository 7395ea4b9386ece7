"""Predicts images with a trained network: labels, overlays, how sure it is, and how much each class takes.

    python -m experiments.predict photo.jpg --checkpoint outputs/train/unet-brain/seed0/checkpoints/last.ckpt --out seen
    python -m experiments.predict FOLDER --checkpoint CKPT --out DIR --tta --probabilities
    python -m experiments.predict 'scans/**/*.png' --ensemble outputs/ablate_upsampling/nearest+concat --out DIR
    python -m experiments.predict FOLDER --checkpoint CKPT --out DIR --score MASKS --compare OTHER

SRC is an image, a folder with all images below it, a quoted pattern, a .txt file with a path a line, or a bucket such
as s3://BUCKET/FOLDER. With --launcher ray, the workers of a cluster share the images. GeoTIFF keeps
its place on the earth and NIfTI its affine. The checkpoint alone says what the network takes. Results have the size,
the name and the place in the tree of their image. Index PNGs in the colours of the classes are in labels/. The
probability of the label, 0 to 255, is in confidence/, and what to look at in overlay/. In stats.csv is a row a class.

An image that does not fit into memory is predicted in tiles. Of a network that sees a finite window these are exact.
For others overlapping windows are blended, and the difference is measured and printed. The same command goes on where
it was interrupted. An image that cannot be read is named and left out; the exit status is then 3.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datamodules.checks.problems import shown
from datamodules.files import MAX_PIXELS
from experiments.prediction.boxed import boxes_of
from experiments.prediction.fitting import GIB
from experiments.prediction.job import Job, Wanted, is_large
from experiments.prediction.on_ray import on_ray
from experiments.prediction.raster import is_georeferenced, rasterio
from experiments.prediction.scored import Scored, compare
from experiments.prediction.segmenter import Segmenter
from experiments.prediction.sources import Item, items, left_out
from experiments.prediction.stats import Done
from experiments.prediction.volumes import AXES
from experiments.runs.scored import alone
from experiments.shell.command import command
from experiments.shell.ending import DONE as FINE
from experiments.shell.ending import IN_PART, USAGE
from experiments.shell.files import locked, read_json, write_json
from experiments.shell.flags import Parser, positive, refuse
from lightning_modules.components.checkpoints import digest

SETTINGS = "predict.json"
SCALES = (0.75, 1.0, 1.25)  # of --tta
KINDS = ("labels", "overlay", "confidence", "disagreement", "probabilities")  # folders of results
LISTED = 20  # failures that are listed at the end


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("source", nargs="+", metavar="SRC", help="image, folder, quoted pattern or .txt list of images")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="the trained network, such as .../last.ckpt")
    parser.add_argument(
        "--ensemble", type=Path, metavar="DIR", help="folder of a variant: the mean of the networks of all its seeds"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--tta", action="store_true", help="average over three scales and mirrored images: slower")
    parser.add_argument("--crf", choices=["dense", "conv"], help="a conditional random field behind the network")
    parser.add_argument(
        "--crf-options",
        metavar="FILE",
        help="its parameters: best.json of search_crf (default: that beside the checkpoint), or deeplab_v1, deeplab_v2",
    )
    parser.add_argument("--probabilities", action="store_true", help="keep those of all classes, as .npz in float16")
    parser.add_argument("--no-overlay", action="store_true", help="leave out the pictures to look at")
    parser.add_argument("--no-confidence", action="store_true", help="leave out the maps of confidence")
    parser.add_argument("--scale", type=float, metavar="X", help="factor of the image's size (default: of training)")
    parser.add_argument(
        "--value-range", type=float, nargs=2, metavar=("LO", "HI"), help="the values that become black and white"
    )
    parser.add_argument("--axis", choices=AXES, default="axial", help="how a volume is cut into slices")
    parser.add_argument("--tile", type=positive, metavar="N", help="exact tiles of N pixels, for local networks")
    parser.add_argument("--overlap", type=positive, metavar="N", help="blend overlapping windows of N pixels")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of a prediction; larger images are cut")
    parser.add_argument(
        "--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="larger images are read window by window"
    )
    parser.add_argument(
        "--boxes", type=Path, metavar="FILE", help="CSV image,left,top,right,bottom,category, for hypercolumn_boxes"
    )
    parser.add_argument("--score", type=Path, metavar="MASKS", help="folder of masks: scores the predictions by them")
    parser.add_argument("--groups", type=Path, metavar="FILE", help="groups.csv of images that belong together")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="another folder with scores of the same images")
    parser.add_argument(
        "--launcher", choices=["local", "ray"], default="local", help="where: here, or on a Ray cluster"
    )
    parser.add_argument("--address", help="of --launcher ray: the cluster, such as auto (default: this machine alone)")
    parser.add_argument("--jobs", type=positive, help="of --launcher ray: workers (default: one a GPU, or a CPU core)")
    parser.add_argument(
        "--gpus-per-job", type=float, metavar="X", help="of --launcher ray: GPUs of a worker, such as 0.5"
    )
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.ensemble is None):
        refuse("give --checkpoint with a trained network, or --ensemble with the folder of a variant")
    if args.memory is not None and not args.memory > 0:
        refuse(f"--memory must be more than 0 GiB, got {args.memory:g}")
    if args.crf_options and not args.crf:
        refuse("--crf-options belong to --crf dense or conv")
    for flag in ("address", "jobs", "gpus_per_job"):
        if getattr(args, flag) is not None and args.launcher != "ray":
            refuse(f"--{flag.replace('_', '-')} belongs to --launcher ray")
    for flag in ("tta", "tile", "overlap"):
        if args.boxes is not None and getattr(args, flag):
            refuse(f"--{flag} does not go with --boxes, which are of the whole image as it is: leave one of them out")
    if args.boxes is not None and args.launcher == "ray":
        refuse("--boxes are predicted in here alone: leave --launcher ray out")
    for flag in ("groups", "compare"):
        if getattr(args, flag) is not None and args.score is None:
            refuse(f"--{flag} belongs to --score MASKS")
    return args


def checkpoints(args: argparse.Namespace) -> list[Path]:
    """Those that predict together. FileNotFoundError where a variant has none."""
    if args.checkpoint is not None:
        return [args.checkpoint]
    found = sorted(args.ensemble.glob("seed*/checkpoints/last.ckpt"), key=lambda path: (len(str(path)), str(path)))
    if not found:
        raise FileNotFoundError(
            f"--ensemble {args.ensemble} holds no seed*/checkpoints/last.ckpt: give the folder of a variant, such as "
            "outputs/ablate_upsampling/nearest+concat"
        )
    return found


def crf_options(args: argparse.Namespace, paths: Sequence[Path]) -> dict[str, Any] | None:
    """The parameters of the CRF that is asked for."""
    if args.crf is None:
        return None
    from lightning_modules.refinement.dense_crf import PRESETS

    if args.crf_options in PRESETS:
        if args.crf != "dense":
            raise ValueError(f"--crf-options {args.crf_options} are of the dense CRF: take --crf dense")
        return PRESETS[args.crf_options]
    place = Path(args.crf_options) if args.crf_options else paths[0].parent.parent / f"search_{args.crf}" / "best.json"
    if not place.is_file():
        raise FileNotFoundError(
            f"{place} is not there: python -m experiments.search_crf {paths[0]} --crf {args.crf} finds the parameters"
            f"{', or take --crf-options deeplab_v2' if args.crf == 'dense' else ''}"
        )
    try:
        options = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError(f"expected an object, got {type(options).__name__}")  # noqa: TRY004
    except ValueError as error:
        raise ValueError(f"--crf-options {place} is no file of parameters ({error}): search_crf writes one") from error
    return options


def of_segmenter(args: argparse.Namespace, paths: Sequence[Path]) -> dict[str, Any]:
    """The arguments of `Segmenter.from_checkpoint` that the flags state."""
    return {
        "device": args.device,
        "crf": args.crf,
        "crf_options": crf_options(args, paths),
        "scale": args.scale,
        "value_range": args.value_range and tuple(args.value_range),
        "flip": args.tta,
        "scales": SCALES if args.tta else (1.0,),
        "probabilities": args.probabilities or args.score is not None,
        "memory": args.memory and args.memory * GIB,
        "tile": args.tile,
        "overlap": args.overlap,
        "max_pixels": args.max_pixels,
    }


def check_kinds(args: argparse.Namespace, found: Sequence[Item]) -> None:
    """Raises ValueError for what cannot be had of an image, or needs what is not installed, before any is predicted."""
    asked = [flag for flag, wanted in (("--score", args.score), ("--probabilities", args.probabilities)) if wanted]
    for item in found:
        if item.url:  # what it is shows when it is fetched
            continue
        kind = "is a volume" if item.volume else "is georeferenced" if is_georeferenced(item.path) else ""
        if not kind and is_large(item.path, args.max_pixels):
            kind = f"has more than {args.max_pixels:,} pixels"
        if kind and not item.volume:
            try:
                rasterio()
            except ValueError as error:
                raise ValueError(f"{shown(str(item.path))} {kind}, which {error}") from error
        if kind and asked:
            raise ValueError(
                f"{' and '.join(asked)} can be had of images that are read at once, and {shown(str(item.path))} "
                f"{kind}: leave it out, or leave the flag out"
            )


def settings_of(args: argparse.Namespace, paths: Sequence[Path]) -> dict[str, Any]:
    """What decides the results: another call with the same goes on, one with others is refused."""
    decides = ["tta", "crf", "crf_options", "scale", "value_range", "axis", "tile", "overlap", "probabilities"]
    decides += ["no_overlay", "no_confidence"]
    return {
        "checkpoints": [digest(path) for path in paths],
        **{name: getattr(args, name) for name in decides},
        "score": None if args.score is None else os.path.realpath(args.score),
        "boxes": None if args.boxes is None else digest(args.boxes),
    }


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where `out` holds results of other settings."""
    if not (out / SETTINGS).is_file() or not Done(out).rows:  # nothing is lost
        return
    stored = read_json(out / SETTINGS)
    if changed := sorted(name for name in {*stored, *settings} if stored.get(name) != settings.get(name)):
        flags = ", ".join("checkpoint" if name == "checkpoints" else f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"{out} holds predictions with another {flags}: choose another folder with --out")


def main(argv: Sequence[str] | None = None) -> None:
    with command("interrupted; the same command goes on behind the images that are done") as console:
        args = parse(argv)

        def say(line: str) -> None:
            console.print(line, soft_wrap=True, markup=False, highlight=False)

        found = items(args.source, out=args.out)
        if skipped := left_out(args.source):
            say(f"not images that are read, and left alone: {skipped} (docs/data.md says what to convert them to)")
        check_kinds(args, found)
        paths = checkpoints(args)
        scored = None
        options = of_segmenter(args, paths)
        segmenter = Segmenter.from_checkpoint(*paths, **options, say=say)
        boxes = None if args.boxes is None else boxes_of(args.boxes, found, segmenter)
        for line in alone(*segmenter.modules) if boxes is None else ():
            say(line)
        settings = settings_of(args, paths)
        if args.score is not None:
            scored = Scored(args.score, found, args.out, segmenter.class_names, args.groups)
        with locked(args.out):
            check_settings(args.out, settings)
            write_json(args.out / SETTINGS, settings)
            wanted = Wanted(not args.no_overlay, not args.no_confidence, AXES.index(args.axis), args.probabilities)
            job, done = Job(segmenter, args.out, wanted, say, scored, boxes), Done(args.out)
            every = None
            if args.launcher == "ray":
                network = ([path.absolute() for path in paths], options)
                where = {"address": args.address, "jobs": args.jobs, "gpus": args.gpus_per_job}
                every = on_ray(network, args.out, wanted, scored, **where)
            failed = job.run(found, done, every)
            names = [item.name for item in found if item.name in done.rows]
            if names:
                done.write(names)
                tell(args, found, names, segmenter, scored, say)
        for item, reason in failed[:LISTED]:
            sys.stderr.write(f"error: {shown(str(item.path))}: {reason}\n")
        if failed:
            more = f", of which {LISTED} are listed" if len(failed) > LISTED else ""
            sys.stderr.write(f"error: {len(failed)} of {len(found)} images could not be predicted{more}\n")
        sys.exit(FINE if not failed else IN_PART if names else USAGE)


def tell(
    args: argparse.Namespace,
    found: Sequence[Item],
    names: Sequence[str],
    segmenter: Segmenter,
    scored: Scored | None,
    say: Callable[[str], None],
) -> None:
    """The last lines: what is where, and how good it is."""
    if scored is not None:
        table, _ = scored.finish(names)
        say(table)
        if args.compare is not None:
            say(compare(args.out, args.compare, segmenter.class_names))
    kinds = [f"{kind}/" for kind in KINDS if (args.out / kind).is_dir()]
    say(f"{len(names)} of {len(found)} images are in {args.out}: {', '.join(kinds)}, stats.csv")


if __name__ == "__main__":
    main()
