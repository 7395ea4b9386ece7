"""`Segmenter`, a checkpoint as a function of an image."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.boxes import Box, in_pixels
from datamodules.files import MAX_PIXELS
from datamodules.transforms import resize_image, scaled_size
from experiments.prediction.fitting import Cut, Fitting, blended, difference, is_out_of_memory
from experiments.prediction.reads import Picture, Reads, as_image, reads_of
from experiments.shell.catalogue import load
from lightning_modules.analysis.tiles import Tiles, spans
from lightning_modules.analysis.tiling import Reach
from lightning_modules.base import SegmentationModule
from lightning_modules.components.blocks import resize
from lightning_modules.components.errors import NonFiniteError
from lightning_modules.components.scores.confusion import predict_labels
from lightning_modules.refinement import post_process

IGNORED = 255


@dataclass(frozen=True)
class Maps:
    """What is predicted of an image (h, w) at the scale of the network.

    Args:
        labels: the likeliest class of each pixel, uint8, or uint16 of more than 255 classes
        confidence: its probability, float32
        entropy: of the probabilities of all classes as a share of the largest that there can be, float32 in [0, 1]
        disagreement: the share of the networks whose own label is another one, float32; None of a single one
        probabilities: float32 (C, h, w), where they were asked for
    """

    labels: NDArray[Any]
    confidence: NDArray[np.float32]
    entropy: NDArray[np.float32]
    disagreement: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a `Segmenter` says of an image of `size` (H, W); every map but those `scaled` has this size.

    The network sees the image at the scale that it was trained at: its labels are `scaled.labels`, and those of the
    image are the nearest of them.
    """

    scaled: Maps
    size: tuple[int, int]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @functools.cached_property
    def labels(self) -> NDArray[Any]:
        return enlarged(self.scaled.labels, self.size)

    @functools.cached_property
    def confidence(self) -> NDArray[np.float32]:
        return enlarged(self.scaled.confidence, self.size)

    @functools.cached_property
    def entropy(self) -> NDArray[np.float32]:
        return enlarged(self.scaled.entropy, self.size)

    @functools.cached_property
    def disagreement(self) -> NDArray[np.float32] | None:
        return None if self.scaled.disagreement is None else enlarged(self.scaled.disagreement, self.size)

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float32] | None:
        """(C, H, W), where they were asked for."""
        of = self.scaled.probabilities
        return None if of is None else np.stack([enlarged(one, self.size) for one in of])


class Segmenter:
    """One checkpoint, or several of the same classes whose probabilities are averaged, as a function of an image.

        labels = Segmenter.from_checkpoint("last.ckpt")("photograph.jpg").labels

    Takes a path, a PIL image, an array (H, W, C) of uint8, uint16 or floats in [0, 1], or a tensor (C, H, W). What does
    not fit the network is refused with ValueError, see `experiments.prediction.reads`. The image goes through the same
    code as a test image of the training: the mean IoU of `scaled.labels` is the stored one.

    Args:
        modules: the trained networks, in evaluation mode
        reads: what they take
        flip: average with the prediction of the mirrored image
        scales: average the predictions of the image at these factors of the network's scale
        probabilities: keep those of all classes, C times the image in float32
        memory, tile, overlap: how images that do not fit into memory are cut, see `experiments.prediction.fitting`
        say: is told what a person should know, such as that the memory ran out
    """

    def __init__(
        self,
        modules: Sequence[SegmentationModule],
        reads: Reads,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        probabilities: bool = False,
        memory: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        max_pixels: int = MAX_PIXELS,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not modules:
            raise ValueError("a Segmenter needs at least one module")
        if not scales or any(not 0 < scale <= 8 for scale in scales):
            raise ValueError(
                f"scales must be factors of more than 0 and at most 8, such as 0.75 1 1.25, got {[*scales]}"
            )
        self.modules, self.reads, self.flip, self.scales = list(modules), reads, flip, tuple(scales)
        self.probabilities, self.max_pixels, self.say = probabilities, max_pixels, say
        whole = "a CRF behind the network" if any(module.refine is not None for module in modules) else ""
        self.fitting = Fitting(modules, memory=memory, tile=tile, overlap=overlap, whole=whole, say=say)
        self._told: set[int] = set()  # sides whose difference was measured

    @classmethod
    def from_checkpoint(
        cls,
        *paths: str | PathLike[str],
        device: str | torch.device | None = None,
        crf: str | None = None,
        crf_options: Mapping[str, Any] | None = None,
        scale: float | None = None,
        value_range: tuple[float, float] | None = None,
        **options: Any,
    ) -> "Segmenter":
        """The networks of these checkpoints, on a GPU where there is one, or on `device`.

        `crf` "dense" or "conv" stands behind each, with `crf_options` such as those of a best.json. `scale` and
        `value_range` are used instead of what the checkpoint says. Raises as `load`, and ValueError for checkpoints
        that do not fit together or a device that is not there.
        """
        if not paths:
            raise ValueError("give a checkpoint, such as outputs/.../checkpoints/last.ckpt")
        where = device_of(device)
        modules = [load(Path(path)) for path in paths]
        reads = [reads_of(module, Path(path)) for module, path in zip(modules, paths, strict=True)]
        for path, module, one in zip(paths[1:], modules[1:], reads[1:], strict=True):
            check_alike(modules[0], module, str(paths[0]), str(path))
            if one != reads[0]:
                raise ValueError(
                    f"{path} takes other images ({one}) than {paths[0]} ({reads[0]}): predict with each alone"
                )
        if crf is not None:
            try:
                refine = post_process(crf, **(crf_options or {}))
            except TypeError as error:
                raise ValueError(f"crf_options do not fit a {crf} CRF: {error}") from error
            for module in modules:
                module.refine = refine
        elif crf_options:
            raise ValueError("crf_options belong to a CRF: give crf, 'dense' or 'conv'")
        for module in modules:
            module.to(where)
        return cls(modules, reads[0].but(scale=scale, value_range=value_range), **options)

    @property
    def module(self) -> SegmentationModule:
        return self.modules[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.module.class_names)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(self.module.palette)

    def image(self, picture: Picture, name: str = "the image", *, part: bool = False) -> Tensor:
        """float32 (C, H, W) in [0, 1] of a picture at its own size; ValueError for one that does not fit."""
        return as_image(picture, self.reads, name, max_pixels=self.max_pixels, part=part)

    def __call__(self, picture: Picture, name: str = "the image", *, part: bool = False) -> Prediction:
        """Raises ValueError, which calls the picture `name`, for one that does not fit; `part` as for `as_image`."""
        return self.predict(self.image(picture, name, part=part), name)

    def predict(self, image: Tensor, name: str = "the image", boxes: Sequence[Box] | None = None) -> Prediction:
        """Of what `image` gives, float32 (C, H, W) in [0, 1] at its own size, whatever range the files have.

        `boxes` of objects, in pixels of the image, are for networks that predict in boxes; without views and tiles.
        """
        small = resize_image(image, scaled_size(image, self.reads.scale))
        size = int(image.shape[1]), int(image.shape[2])
        within = None if boxes is None else in_pixels(boxes, size, (int(small.shape[1]), int(small.shape[2])))
        return Prediction(self.maps(small, name, within), size, self.class_names, self.palette)

    @torch.no_grad()
    def maps(self, image: Tensor, name: str = "the image", boxes: Tensor | None = None) -> Maps:
        """Of an image (C, h, w) in [0, 1] at the network's scale, and boxes (B, 5) in its pixels.

        Raises NonFiniteError, naming the image, where a network answers with NaN or infinity.
        """
        if boxes is not None and (self.flip or self.scales != (1.0,)):
            raise ValueError("boxes are predicted in as they are: leave flip and scales (--tta) out")
        cut: Cut | None = None
        while True:
            try:
                cut = cut or self.fitting.cut(*image.shape[1:])
                if boxes is not None and cut.kind != "whole":
                    raise ValueError(f"{name} does not fit into memory at once, as boxes need it: raise --memory")
                if cut.kind == "exact" and not self.probabilities and not self.flip and self.scales == (1.0,):
                    return self._streamed(image, cut, name)
                return self._averaged(image, cut, name, boxes)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                cut = self.fitting.ran_out(cut or Cut(), *map(int, image.shape[1:]))

    def _averaged(self, image: Tensor, cut: Cut, name: str, boxes: Tensor | None) -> Maps:
        """Mean probabilities over networks, scales and flips."""
        total: Tensor | None = None
        own = []
        for module in self.modules:
            seen = []
            for view, back in self._views(image):
                probabilities, labels = self._probabilities(module, view, self._cut_of(view, image, cut), boxes)
                seen.append(back(probabilities))
            of_module = seen[0] if len(seen) == 1 else torch.stack(seen).mean(0)
            own.append(labels if len(seen) == 1 else of_module.argmax(0))
            total = of_module if total is None else total + of_module
        assert total is not None
        return summarised(total / len(self.modules), own, name, keep=self.probabilities)

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """The image as it is looked at, and how its probabilities come back."""
        size = (int(image.shape[1]), int(image.shape[2]))
        for scale in self.scales:
            scaled = resize_image(image, scaled_size(image, scale))
            for flipped in (False, True) if self.flip else (False,):

                def back(probabilities: Tensor, flipped: bool = flipped) -> Tensor:
                    turned = probabilities.flip(-1) if flipped else probabilities
                    return turned if tuple(turned.shape[1:]) == size else resize(turned[None], size)[0]

                yield scaled.flip(-1) if flipped else scaled, back

    def _cut_of(self, view: Tensor, image: Tensor, cut: Cut) -> Cut:
        """The larger view of an image may have to be cut where the image need not be."""
        return cut if view.shape == image.shape or cut.kind != "whole" else self.fitting.cut(*view.shape[1:])

    def _probabilities(
        self, module: SegmentationModule, image: Tensor, cut: Cut, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (C, h, w) and labels (h, w) on the CPU.

        Labels are of the logits, as the test's are: of two that are nearly equal the probabilities may be the same.
        """
        device, classes = module.device, module.num_classes
        if cut.kind == "whole":
            return of_logits(module(image[None].to(device), *([] if boxes is None else [boxes[None]])))
        if cut.kind == "blended":
            self._tell_difference(module, image, cut)
            out = blended(lambda windows: module(windows.to(device)).float().cpu(), image, cut.side, classes)
            return out, out.argmax(0)
        out, labels = torch.empty(classes, *image.shape[1:]), torch.empty(image.shape[1:], dtype=torch.int64)
        for rows, columns, logits in self._tiles([module], image, cut):
            out[:, rows, columns], labels[rows, columns] = of_logits(logits[0])
        return out, labels

    def _tiles(
        self, modules: Sequence[SegmentationModule], image: Tensor, cut: Cut
    ) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """Rows and columns of each exact tile, and the logits (1, C, h, w) of each of the networks."""
        height, width = map(int, image.shape[1:])
        reach = self.fitting.local
        assert isinstance(reach, Reach)
        tiled = [Tiles(module, module, len(image), height, width, reach) for module in modules]
        for rows in spans(height, cut.side, reach):
            for columns in spans(width, cut.side, reach):
                window = image[None, :, rows.read, columns.read].to(modules[0].device)
                logits = [one(window, rows, columns) for one in tiled]
                yield slice(rows.start, rows.stop), slice(columns.start, columns.stop), logits

    def _streamed(self, image: Tensor, cut: Cut, name: str) -> Maps:
        """As `_averaged`, holding the probabilities of a tile alone."""
        height, width = map(int, image.shape[1:])
        maps = empty(height, width, self.module.num_classes, several=len(self.modules) > 1)
        for rows, columns, logits in self._tiles(self.modules, image, cut):
            put(maps, rows, columns, self.of_tile(logits, name))
        return maps

    def of_tile(self, logits: Sequence[Tensor], name: str) -> Maps:
        """The maps of a window, of each network's logits (1, C, h, w)."""
        each = [of_logits(one) for one in logits]
        return summarised(torch.stack([one for one, _ in each]).mean(0), [own for _, own in each], name, keep=False)

    def _tell_difference(self, module: SegmentationModule, image: Tensor, cut: Cut) -> None:
        """Says once a side by how much blending differs, measured on the first image that it is used for."""
        if cut.side in self._told:
            return
        self._told.add(cut.side)
        across = 2 * cut.side
        while self.fitting.needs(across, across) > self.fitting.largest and across > cut.side + 16:
            across = (across + cut.side) // 2
        device = module.device
        most, other, (height, width) = difference(
            lambda windows: module(windows.to(device)).float().cpu(), image, cut.side, across, module.num_classes
        )
        why = self.fitting.local if isinstance(self.fitting.local, str) else "asked for by --overlap"
        self.say(
            f"blended of overlapping windows of {cut.side} pixels, as it does not fit into memory at once and {why}: "
            f"on {height} x {width} pixels, {100 * other:.2f} % of the labels differ from a prediction at once, and "
            f"probabilities by up to {most:.3f}"
        )


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that is named, or the GPU where there is one. Raises ValueError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        there = f"cpu{', cuda' if torch.cuda.is_available() else ''}"
        raise ValueError(f"device must be one that is there ({there}), got {str(device)!r}") from error
    return where


def check_alike(first: SegmentationModule, other: SegmentationModule, of_first: str, of_other: str) -> None:
    """ValueError unless two networks predict the same classes."""
    if first.class_names != other.class_names:
        raise ValueError(
            f"{of_other} predicts {len(other.class_names)} classes ({', '.join(other.class_names[:5])}), and "
            f"{of_first} {len(first.class_names)} ({', '.join(first.class_names[:5])}): only networks of the same "
            "classes predict together"
        )


def of_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (1, C, h, w) -> probabilities (C, h, w) in float32 and labels (h, w), on the CPU."""
    return logits.float().softmax(1)[0].cpu(), predict_labels(logits.float())[0].cpu()


def summarised(probabilities: Tensor, own: Sequence[Tensor], name: str, *, keep: bool) -> Maps:
    """The maps of probabilities (C, h, w), and of the labels (h, w) of each network."""
    confidence, labels = probabilities.max(0)
    if not bool(confidence.isfinite().all()):
        raise NonFiniteError(f"{name}: the network answers with NaN or infinity; take an earlier checkpoint")
    labels = own[0] if len(own) == 1 else labels
    classes = len(probabilities)
    most = float(np.log(classes)) if classes > 1 else 1.0
    entropy = torch.special.entr(probabilities).sum(0) / most
    other = torch.stack([one != labels for one in own]).float().mean(0) if len(own) > 1 else None
    return Maps(
        labels.numpy().astype(kind_of(classes)),
        confidence.numpy(),
        entropy.clamp(0, 1).numpy(),
        None if other is None else other.numpy(),
        probabilities.numpy() if keep else None,
    )


def kind_of(classes: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds every label and one more, for what is unlabelled."""
    return np.uint8 if classes <= IGNORED else np.uint16


def empty(height: int, width: int, classes: int, *, several: bool) -> Maps:
    """Maps to be filled."""
    floats = [np.empty((height, width), np.float32) for _ in range(3)]
    return Maps(np.empty((height, width), kind_of(classes)), floats[0], floats[1], floats[2] if several else None)


def put(maps: Maps, rows: slice, columns: slice, tile: Maps) -> None:
    """Writes a tile where it belongs."""
    for name in ("labels", "confidence", "entropy", "disagreement"):
        if (part := getattr(tile, name)) is not None:
            getattr(maps, name)[rows, columns] = part


def nearest(length: int, source: int) -> NDArray[np.intp]:
    """For each of `length` pixels the one of `source` under its centre, as `nearest-exact` of torch."""
    return np.minimum(((np.arange(length) + 0.5) * (source / length)).astype(np.intp), source - 1)


def enlarged(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(h, w) -> `size`, each pixel the one under its centre; labels are never averaged."""
    if array.shape == size:
        return array
    return array[np.ix_(nearest(size[0], array.shape[0]), nearest(size[1], array.shape[1]))]
