"""How an image is predicted so that it fits into memory: at once, in exact tiles, or in windows that overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.shell.memory import available_bytes
from lightning_modules.analysis.memory import peak_bytes
from lightning_modules.analysis.tiling import NotLocalError, Reach, reach
from lightning_modules.base import SegmentationModule

SIDES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 64)
WORKSPACE = 1.6  # what a prediction takes of memory, over what its maps take: measured on U-Net and DeepLab v3+
GIB = 2**30
OVERLAP = 0.5  # of neighbouring windows that are blended
OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Cut:
    """How an image is cut: not at all, in exact tiles of `side` pixels, or in windows of `side` that are blended."""

    kind: str = "whole"  # "whole", "exact" or "blended"
    side: int = 0

    @property
    def halved(self) -> "Cut":
        return replace(self, side=self.side // 2)


class Fitting:
    """What is known of the networks that predict together, and how they are made to fit.

    Args:
        modules: of one architecture or several, all of the same classes and channels
        memory: bytes that the maps of a prediction may take; None for a share of what there is
        tile: pixels of a side of exact tiles, which a network that is not local refuses
        overlap: pixels of a side of windows that overlap and are blended
        whole: that nothing but the whole image will do, as for a CRF behind the network
    """

    def __init__(
        self,
        modules: Sequence[SegmentationModule],
        *,
        memory: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        whole: str = "",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        for name, value in (("tile", tile), ("overlap", overlap)):
            if value is not None and value < 16:
                raise ValueError(f"{name} must be at least 16 pixels, got {value}")
        if tile and overlap:
            raise ValueError("tile and overlap are two ways to cut an image: give one of them")
        if whole and (tile or overlap):
            raise ValueError(f"{whole} needs the whole image at once: leave out {'tile' if tile else 'overlap'}")
        self.modules, self.memory, self.tile, self.overlap, self.whole = modules, memory, tile, overlap, whole
        self.say = say
        self.most: int | None = None  # side that ran out of memory
        self._needs: dict[tuple[int, int], float] = {}
        if tile:
            self.check_local()  # before anything is read

    def check_local(self) -> None:
        """Raises ValueError where exact tiles cannot be had of one of the networks."""
        if not isinstance(self.local, Reach):
            raise ValueError(  # noqa: TRY004  # no type of the user's
                f"exact tiles need a local network, and for {type(self.modules[0]).__name__} {self.local}: leave "
                "--tile out, or blend overlapping windows with --overlap"
            )

    @cached_property
    def local(self) -> Reach | str:
        """The reach, or why there is none."""
        found = []
        for module in self.modules:
            try:
                found.append(reach(module, module.hparams["in_channels"]))
            except NotLocalError as error:
                return str(error)
        first = found[0]
        if any(one.step != first.step for one in found):
            return "the networks have other strides than one another"
        return replace(first, halo=max(one.halo for one in found))

    @property
    def budget(self) -> float:
        """Bytes that the maps of a prediction may take."""
        if self.memory is not None:
            return self.memory
        device = self.modules[0].device
        if device.type == "cuda":
            return 0.8 * torch.cuda.mem_get_info(device)[0]
        return min(0.75 * GIB, 0.5 * available_bytes())

    @property
    def largest(self) -> float:
        """Bytes that an image may take which cannot be cut: more than the budget, where the machine has them."""
        if self.modules[0].device.type == "cuda" or self.memory is not None:
            return self.budget
        return max(self.budget, 0.6 * available_bytes())

    def needs(self, height: int, width: int) -> float:
        """About the bytes that an image of this size takes while it is predicted."""
        if (height, width) not in self._needs:
            first = self.modules[0]
            refine, first.refine = first.refine, None  # a CRF takes a few maps more, and computes with numbers
            try:
                peak = peak_bytes(first, first.hparams["in_channels"], height, width)
            finally:
                first.refine = refine
            self._needs[height, width] = WORKSPACE * peak
        return self._needs[height, width]

    def cut(self, height: int, width: int) -> Cut:
        """How to predict an image of this size. Raises ValueError where nothing fits."""
        if self.tile:
            fits = self.tile >= max(height, width)
            return Cut() if fits else Cut("exact", self._below(self.tile))
        if self.overlap:
            return Cut("blended", self._below(self.overlap)) if self.overlap < max(height, width) else Cut()
        needed = self.needs(height, width)
        if needed <= self.budget and self.most is None:
            return Cut()
        if self.whole:
            if needed <= self.largest and self.most is None:
                return Cut()
            raise ValueError(
                f"{self.whole} needs the whole image at once, and {height} x {width} pixels take about "
                f"{needed / GIB:.1f} GiB of the {self.largest / GIB:.1f} that may be used: take a smaller --scale, cut "
                "the image up, or leave it out"
            )
        if isinstance(self.local, Reach):
            return Cut("exact", self._side(self.local.halo, height, width))
        if needed <= self.largest and self.most is None:
            return Cut()
        return Cut("blended", self._side(0, height, width))

    def ran_out(self, cut: Cut, height: int, width: int) -> Cut:
        """The way to try after this one had too little memory. Raises ValueError where none is left."""
        side = (cut.side or max(height, width)) // 2
        if side < 64 or self.whole:
            raise ValueError(
                f"an image of {height} x {width} pixels does not fit into the memory of {self.modules[0].device}: take "
                "a smaller --scale, or --device cpu"
            )
        self.most = side
        self.say(f"out of memory at {cut.side or 'the whole image'}: going on with tiles of {side} pixels")
        return Cut("exact" if isinstance(self.local, Reach) else "blended", side)

    def _below(self, side: int) -> int:
        return side if self.most is None else min(side, self.most)

    def _side(self, halo: int, height: int, width: int) -> int:
        for side in SIDES:
            here = (min(side + 2 * halo, height), min(side + 2 * halo, width))
            if self._below(side) == side and self.needs(*here) <= self.budget:
                return side
        least = self.needs(min(SIDES[-1] + 2 * halo, height), min(SIDES[-1] + 2 * halo, width)) / GIB
        raise ValueError(
            f"not even a tile of {SIDES[-1]} pixels with the {halo} around it that the network sees fits into "
            f"{self.budget / GIB:.2f} GiB: raise --memory to {least:.1f}, or take a smaller --scale"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch says that the memory ran out, on a GPU or on the CPU."""
    said = str(error)
    return isinstance(error, OF_MEMORY) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said.lower())
    )


def blended(predict: Callable[[Tensor], Tensor], image: Tensor, side: int, classes: int) -> Tensor:
    """Probabilities (C, H, W) of windows of `side` pixels that overlap by half, weighted by a Gaussian, by MONAI.

    An approximation: `difference` measures by how much. Raises ValueError without the extra.
    """
    inferer = _inferer((min(side, image.shape[1]), min(side, image.shape[2])))
    probabilities: Tensor = inferer(image[None], lambda windows: predict(windows).softmax(1))[0]
    assert len(probabilities) == classes
    return probabilities


def _inferer(roi: tuple[int, int]) -> Any:
    try:
        from monai.inferers.inferer import SlidingWindowInferer
    except ImportError as error:
        raise ValueError(
            "images that do not fit into memory are blended of overlapping windows by MONAI, which is missing: "
            'pip install -e ".[overlap]"'
        ) from error
    inferer: Any = SlidingWindowInferer(roi_size=roi, sw_batch_size=1, overlap=OVERLAP, mode="gaussian")
    return inferer


def difference(
    predict: Callable[[Tensor], Tensor], image: Tensor, side: int, across: int, classes: int
) -> tuple[float, float, tuple[int, int]]:
    """By how much blending differs from predicting at once, in the middle of an image (C, H, W), `across` pixels wide.

    The largest difference of a probability, the share of pixels with another label, and the size that was compared.
    """
    height, width = (min(across, length) for length in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    part = image[:, top : top + height, left : left + width]
    whole = predict(part[None]).softmax(1)[0]
    cut = blended(predict, part, side, classes)
    return float((whole - cut).abs().max()), float((whole.argmax(0) != cut.argmax(0)).float().mean()), (height, width)
