"""Computes and draws what a network looks at, for `experiments.explain`: its fields, overlaps and activation map."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from datamodules.checks.problems import shown
from experiments.reports.figures.explained import Fields, Taps, draw_cam, draw_fields, draw_overlaps
from experiments.reports.figures.looks import short
from lightning_modules.analysis.cam import seg_grad_cam, spread
from lightning_modules.analysis.effective_field import SHARE, effective_field, held, smoothed
from lightning_modules.analysis.overlap import overlaps
from lightning_modules.analysis.receptive_field import ReceptiveField, field_of_pixel

if TYPE_CHECKING:  # they bring Lightning, without which results are read
    from lightning_modules.analysis.parts import Network
    from lightning_modules.base import SegmentationModule

LISTED = 12  # classes in an error


@dataclass(frozen=True)
class View:
    """What is looked at: images (N, C, H, W), a pixel of them, and a picture (H, W, 3) to draw on."""

    images: Tensor
    pixel: tuple[int, int]
    picture: NDArray[np.uint8]
    title: str
    given: bool  # or made of random numbers

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


@dataclass(frozen=True)
class Asked:
    """What is asked of a view."""

    label: int | None  # of a class; None is the predicted one
    layer: str | None  # full path; None is the deepest map of the encoder
    region: str  # "pixel", or "predicted" for all pixels that are predicted as the class
    fields: bool  # whether theoretical fields are followed


def followed(network: "Network") -> tuple[dict[str, ReceptiveField], str]:
    """The fields of all maps; none, and why, where they cannot be followed."""
    try:
        return network.fields, ""
    except NotImplementedError as error:
        return {}, f"no receptive fields: {error}"


def size_of(field: ReceptiveField | None) -> str:
    """Height and width of a field, in words."""
    return "" if field is None else "image" if field.size is None else " x ".join(map(str, field.size))


def class_of(name: str, class_names: list[str]) -> int:
    """The label of a class by its name or its number."""
    names = [shown(known) for known in class_names]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    listing = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    raise ValueError(f"--class must be one of {listing}, or a number below {len(names)}, got {name!r}{hint}")


def layer_of(path: str, network: "Network") -> str:
    """The full path of a layer that returns a map, of its path as the table shows it."""
    maps = [name for name, shape in network.shapes.items() if len(shape) == 3 and name]
    if found := [name for name in (f"network.{path}", path) if name in maps]:
        return found[0]
    near = difflib.get_close_matches(path, [name.removeprefix("network.") for name in maps], n=3, cutoff=0)
    raise ValueError(
        f"--layer must be the path of a layer that returns a map, got {path!r}; near are {', '.join(near)}"
    )


def draw(
    network: "Network", module: "SegmentationModule", view: View, asked: Asked, say: Callable[[str], None]
) -> dict[str, Figure]:
    """Every picture that can be drawn, by its name; `say` gets a line of each, and why another is missing."""
    fields = followed(network)[0] if asked.fields else {}
    figures = {}
    if view.given:
        figures["cam.png"] = _cam(network, module, view, asked, fields, say)
    else:
        say("no --image: cam.png is not drawn, as random numbers show nothing of a class")
    figures["field.png"] = _fields(module, view, fields, say)
    maps = [
        Taps(
            f"kernel {' x '.join(map(str, dict.fromkeys(found.kernel)))}, stride "
            f"{' x '.join(map(str, dict.fromkeys(found.stride)))}, padding "
            f"{' x '.join(map(str, dict.fromkeys(found.padding)))}\n"
            + (f"even: {found.most}" if found.even else f"uneven: {found.least} to {found.most}"),
            _layers(found.paths),
            found.taps.numpy(),
            found.inner,
        )
        for found in overlaps(module.network)
    ]
    for taps in maps:
        say(f"overlap of {taps.layers}: " + taps.title.replace("\n", ", "))
    if maps:
        figures["overlap.png"] = draw_overlaps(maps, "taps of each transposed convolution that meet in a pixel")
    else:
        say("no transposed convolution, whose taps could overlap: overlap.png is not drawn")
    return figures


def _fields(
    module: "SegmentationModule", view: View, fields: dict[str, ReceptiveField], say: Callable[[str], None]
) -> Figure:
    box, theoretical = None, "not followed"
    if fields:
        box = field_of_pixel(module, module.hparams["in_channels"], view.size, view.pixel)
        theoretical = "the whole image" if fields[""].whole_image else size_of(fields[""])
        if box is not None and box.reaches(*view.size) and not fields[""].whole_image:
            theoretical += ", cut at the border"
    shares, effective = effective_field(module, view.images, view.pixel), "none, as nothing moves these logits"
    known, level = None, 0.0
    if shares.any():
        smooth = smoothed(shares)
        inside = held(smooth)
        known, level = (shares.numpy(), smooth.numpy()), inside.level
        effective = f"{100 * SHARE:.0f} % within {inside.pixels:,} pixels, a square of side {inside.side:.0f}"
    say(f"field: theoretical {theoretical}; effective {effective}")
    return draw_fields(view.picture, Fields(view.pixel, box, known, level, theoretical, effective), view.title)


def _cam(
    network: "Network",
    module: "SegmentationModule",
    view: View,
    asked: Asked,
    fields: dict[str, ReceptiveField],
    say: Callable[[str], None],
) -> Figure:
    with torch.no_grad():
        logits = module(view.images)[0]
    labels = logits.argmax(0)
    names = [f"class {name}" if name.isdecimal() else shown(name) for name in module.class_names]
    predicted = int(labels[view.pixel])
    share = float(logits[(slice(None), *view.pixel)].softmax(0)[predicted])
    say(f"pixel at row {view.pixel[0]}, column {view.pixel[1]}: {names[predicted]} is predicted, {share:.1%}")
    label = predicted if asked.label is None else asked.label
    region = torch.zeros_like(labels, dtype=torch.bool)
    region[view.pixel] = True
    if asked.region == "predicted":
        region = labels == label
        if not region.any():
            found = ", ".join(names[int(index)] for index in labels.unique()[:LISTED])
            raise ValueError(
                f"--region predicted must have a pixel, got none that is predicted as {names[label]}: ask of --region "
                f"pixel, or of another --class, such as {found}"
            )
    layer = network.deepest if asked.layer is None else asked.layer
    cam = spread(seg_grad_cam(module, view.images, layer, label, region), *view.size, fields.get(layer))
    path = layer.removeprefix("network.")
    said = "" if cam.any() else ": nothing of it speaks for the class"
    say(f"cam: layer {path}, {' x '.join(map(str, network.shapes[layer]))}, for {names[label]}{said}")
    return draw_cam(
        view.picture,
        labels.numpy(),
        cam.double().numpy(),
        view.pixel,
        region.numpy() if asked.region == "predicted" else None,
        names,
        module.palette,
        (
            view.title,
            "predicted",
            f"{path}: what speaks for {short(names[label], 24)}" if cam.any() else f"{path}{said}",
        ),
    )


def _layers(paths: list[str]) -> str:
    return ", ".join(paths) if len(paths) <= 2 else f"{paths[0]} to {paths[-1]} ({len(paths)} layers)"
