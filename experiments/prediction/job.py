"""Predicts many images into a folder: goes on where it stopped, and past an image that cannot be read."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.boxes import Boxes
from datamodules.checks.problems import shown
from datamodules.layouts.headers import bands_of
from experiments.prediction.fitting import Cut, is_out_of_memory
from experiments.prediction.pictures import colours, label_png, overlay_png, rgb_of, share_png
from experiments.prediction.raster import Raster, RasterOut, as_png, check_upright, is_georeferenced, opened
from experiments.prediction.reads import check_values
from experiments.prediction.segmenter import Maps, Prediction, Segmenter, empty, nearest, put
from experiments.prediction.sources import Item
from experiments.prediction.stats import Done, Tally
from experiments.prediction.volumes import AXES, read_volume
from experiments.runs.callbacks import save_npz
from experiments.shell.ending import CannotWriteError, NoSpaceError
from experiments.shell.files import write_atomic
from experiments.shell.places import below
from lightning_modules.analysis.tiles import Tiles, spans
from lightning_modules.analysis.tiling import Reach

BAND = 8 * 2**20  # pixels of the rows of a large image that are held at once
MOST_VOXELS = 2**30
LONGEST = 220  # bytes of a name, to which endings are added
EVERY = 5.0  # seconds between two lines of progress


Ended = tuple[Item, list[dict[str, Any]] | str]  # an image with its rows of stats.csv, or why it was left out


@dataclass(frozen=True)
class Wanted:
    """What is written beside the labels."""

    overlay: bool = True
    confidence: bool = True
    axis: int = 2  # across which a volume is cut
    probabilities: bool = False  # of all classes, which the segmenter then keeps


def is_large(path: Path, max_pixels: int) -> bool:
    """Whether an image has more pixels than are held in memory: it then goes through rasterio."""
    try:
        header = bands_of(path)
    except ValueError:  # which reading it says
        return False
    return header.width * header.height > max_pixels


def _count(tally: Tally, prediction: Prediction) -> None:
    """Adds the pixels of a whole image, or of a slice."""
    maps = {name: getattr(prediction, name) for name in ("confidence", "entropy", "disagreement")}
    tally.add(prediction.labels, None, **maps)


class Job:
    """Predicts images into `out`.

    Args:
        segmenter: predicts one
        out: folder of the results
        wanted: what is written
        say: is told progress and what went wrong
        also: is called with each image of its own (name, prediction), such as to score it
        boxes: of objects, by the name of the image, in which it is predicted
    """

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path,
        wanted: Wanted,
        say: Callable[[str], None],
        also: Callable[[Item, Prediction], None] | None = None,
        boxes: Boxes | None = None,
    ) -> None:
        self.boxes = boxes
        self.segmenter, self.out, self.wanted, self.say, self.also = segmenter, out, wanted, say, also
        self.names, self.classes = segmenter.class_names, len(segmenter.class_names)
        self.colours = colours(segmenter.palette, self.classes)
        self.several = len(segmenter.modules) > 1
        self.started = self.told = time.monotonic()

    def run(
        self, items: Sequence[Item], done: Done, every: "Callable[[Sequence[Item]], Iterator[Ended]] | None" = None
    ) -> list[tuple[Item, str]]:
        """The images that could not be predicted, with the reason of each.

        `every` predicts them elsewhere and tells how each has ended, in any order; None does it here, one by one.
        """
        failed: list[tuple[Item, str]] = []
        waiting = [item for item in items if not done.has(item)]
        if len(waiting) < len(items):
            self.say(f"{len(items) - len(waiting)} of {len(items)} images are done already")
        self.started = self.told = time.monotonic()
        ends = every(waiting) if every else map(self.attempt, waiting)
        for number, (item, ended) in enumerate(ends, 1):
            if isinstance(ended, str):
                failed.append((item, ended))
                self.say(f"left out {shown(item.name)}: {ended}")
            else:
                done.add(item, ended)
            rate = number / (time.monotonic() - self.started)
            out = f", {len(failed)} left out" if failed else ""
            self._progress(f"{number} of {len(waiting)} images{out}, {rate:.2g} images/s", last=number == len(waiting))
        return failed

    def attempt(self, item: Item) -> "Ended":
        """The image with its rows of stats.csv, or with the reason why it cannot be predicted."""
        try:
            with item.here() as near:
                return item, self._one(near)
        except (CannotWriteError, NoSpaceError):
            raise
        except (ValueError, FileNotFoundError, OSError) as error:
            return item, " ".join(str(error).split())

    def _progress(self, line: str, *, last: bool = False) -> None:
        """Says how far it is, now and then."""
        now = time.monotonic()
        if last or now - self.told > EVERY:
            self.told = now
            self.say(line)

    def _one(self, item: Item) -> list[dict[str, Any]]:
        """Writes the results of an image; its rows of stats.csv."""
        if any(len(part.encode()) > LONGEST for part in item.name.split("/")):
            raise ValueError(f"its name is longer than {LONGEST} bytes, and results would have a longer one: rename it")
        if item.volume:
            return self._volume(item)
        if is_georeferenced(item.path) or is_large(item.path, self.segmenter.max_pixels):
            return self._raster(item)
        image = self.segmenter.image(item.path)
        boxes = None if self.boxes is None else self.boxes[item.name]
        prediction = self.segmenter.predict(image, str(item.path), boxes)
        tally = Tally(self.classes)
        _count(tally, prediction)
        write_atomic(self._place("labels", item, ".png"), label_png(prediction.labels, self.colours))
        if self.wanted.confidence:
            write_atomic(self._place("confidence", item, ".png"), share_png(prediction.confidence))
        if prediction.disagreement is not None:
            write_atomic(self._place("disagreement", item, ".png"), share_png(prediction.disagreement))
        if self.wanted.overlay:
            picture = overlay_png(rgb_of(image), prediction.labels, self.colours, self.names)
            write_atomic(self._place("overlay", item, ".png"), picture)
        self._keep_probabilities(item, prediction.scaled)
        if self.also:
            self.also(item, prediction)
        return tally.rows(item.name, self.names, None)

    def _place(self, kind: str, item: Item, ending: str) -> Path:
        return below(self.out, kind, *f"{item.name}{ending}".split("/"))

    def _keep_probabilities(self, item: Item, maps: Maps) -> None:
        if self.wanted.probabilities and maps.probabilities is not None:
            of_classes = np.array(self.names)
            path = self._place("probabilities", item, ".npz")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_npz(path, probabilities=maps.probabilities.astype(np.float16), class_names=of_classes)

    def _volume(self, item: Item) -> list[dict[str, Any]]:
        volume = read_volume(item.path, self.wanted.axis, MOST_VOXELS)
        check_values(volume.voxels, self.segmenter.reads, str(item.path))
        tally, labels, confidence, other = Tally(self.classes), [], [], []
        for index, name in enumerate(volume.names(str(item.path))):
            prediction = self.segmenter(volume[index], name, part=True)
            self._progress(f"{shown(item.name)}: slice {index + 1} of {len(volume)}")
            _count(tally, prediction)
            labels.append(prediction.labels)
            confidence.append(np.rint(prediction.confidence * 255).astype(np.uint8))
            if prediction.disagreement is not None:
                other.append(np.rint(prediction.disagreement * 255).astype(np.uint8))
        volume.write(self._place("labels", item, ".nii.gz"), np.stack(labels))
        if self.wanted.confidence:
            volume.write(self._place("confidence", item, ".nii.gz"), np.stack(confidence))
        if other:
            volume.write(self._place("disagreement", item, ".nii.gz"), np.stack(other))
        if self.wanted.overlay:
            middle = len(volume) // 2
            image = self.segmenter.image(volume[middle], str(item.path), part=True)
            picture = overlay_png(rgb_of(image), labels[middle], self.colours, self.names)
            write_atomic(self._place("overlay", item, f"_{AXES[self.wanted.axis]}{middle}.png"), picture)
        return tally.rows(item.name, self.names, volume.unit)

    def _raster(self, item: Item) -> list[dict[str, Any]]:
        with opened(item.path) as dataset:
            geo, cut = is_georeferenced(item.path), None
            raster = Raster(dataset, self.segmenter.reads, str(item.path), geo=geo)
            check_upright(item.path)
            raster.check()
            while True:
                tally, outs = Tally(self.classes), self._outs(item, dataset)
                try:
                    cut = cut or self.segmenter.fitting.cut(*raster.scaled)
                    for top, stop, maps in self._bands(raster, cut):
                        self._put(raster, outs, tally, top, stop, maps)
                        self._progress(f"{shown(item.name)}: {stop} of {raster.scaled[0]} rows")
                    for out in outs.values():
                        out.finish()
                    break
                except BaseException as error:
                    for out in outs.values():
                        out.discard()
                    if not is_out_of_memory(error):
                        raise
                    cut = self.segmenter.fitting.ran_out(cut or Cut(), *raster.scaled)
            if self.wanted.overlay:
                look = raster.look()
                with opened(outs["labels"].path) as made:
                    labels = made.read(1, out_shape=tuple(look.shape[1:]))
                unknown = labels >= self.classes
                picture = rgb_of(look)
                picture[unknown] = 0
                palette = np.concatenate([self.colours, np.zeros((1, 3), np.uint8)])
                shown_as = np.where(unknown, self.classes, labels)
                named = [*self.names, "no data"]
                write_atomic(self._place("overlay", item, ".png"), overlay_png(picture, shown_as, palette, named))
            if not geo:
                for out in outs.values():
                    as_png(out.path, out.path.with_suffix(".png"))
                    out.path.unlink()
            return tally.rows(item.name, self.names, raster.unit)

    def _outs(self, item: Item, dataset: Any) -> dict[str, RasterOut]:
        kind = "uint8" if self.classes <= 255 else "uint16"
        nodata = int(np.iinfo(kind).max)
        made = {
            "labels": RasterOut(self._place("labels", item, ".tif"), dataset, kind, nodata=nodata, palette=self.colours)
        }
        if self.wanted.confidence:
            made["confidence"] = RasterOut(self._place("confidence", item, ".tif"), dataset, "uint8")
        if self.several:
            made["disagreement"] = RasterOut(self._place("disagreement", item, ".tif"), dataset, "uint8")
        return made

    @torch.no_grad()
    def _bands(self, raster: Raster, cut: Cut) -> Iterator[tuple[int, int, Maps]]:
        """Rows [first, last) of the scaled image with their maps, from the top down."""
        height, width = raster.scaled
        segmenter, reach = self.segmenter, self.segmenter.fitting.local
        plain = not segmenter.flip and segmenter.scales == (1.0,) and not segmenter.probabilities
        if cut.kind != "exact" or not plain:
            maps = segmenter.maps(raster.window(slice(0, height), slice(0, width)), raster.name)
            yield 0, height, maps
            return
        assert isinstance(reach, Reach)
        device, modules = segmenter.module.device, segmenter.modules
        tiled = [Tiles(one, one, segmenter.reads.in_channels, height, width, reach) for one in modules]
        # Of wide images fewer rows at once; but not so few that most of what is computed is what surrounds them.
        at_once = min(cut.side, max(BAND // width, 2 * reach.halo))
        for rows in spans(height, at_once, reach):
            band = empty(rows.stop - rows.start, width, self.classes, several=self.several)
            for columns in spans(width, cut.side, reach):
                window = raster.window(rows.read, columns.read)[None].to(device)
                tile = segmenter.of_tile([one(window, rows, columns) for one in tiled], raster.name)
                put(band, slice(0, rows.stop - rows.start), slice(columns.start, columns.stop), tile)
            yield rows.start, rows.stop, band

    def _put(self, raster: Raster, outs: dict[str, RasterOut], tally: Tally, first: int, last: int, maps: Maps) -> None:
        """Writes and counts the rows of the file that scaled rows [first, last) are nearest to."""
        height, width = raster.size
        of_scaled = nearest(height, raster.scaled[0])
        top, bottom = (int(np.searchsorted(of_scaled, place)) for place in (first, last))
        if top == bottom:
            return
        rows = of_scaled[top:bottom] - first
        columns = nearest(width, raster.scaled[1])

        def full(array: NDArray[Any] | None) -> NDArray[Any] | None:
            if array is None or (raster.size == raster.scaled and len(rows) == len(array)):
                return array
            return array[np.ix_(rows, columns)]

        labels, confidence, entropy, other = map(full, (maps.labels, maps.confidence, maps.entropy, maps.disagreement))
        assert labels is not None and confidence is not None
        known = raster.known(top, bottom)
        tally.add(labels, known, confidence=confidence, entropy=entropy, disagreement=other)
        if known is not None:
            labels = np.where(known, labels, np.iinfo(labels.dtype).max)
        outs["labels"].write(labels, top)
        for name, share in (("confidence", confidence), ("disagreement", other)):
            if name in outs and share is not None:
                outs[name].write(np.rint(share * 255).astype(np.uint8), top)
