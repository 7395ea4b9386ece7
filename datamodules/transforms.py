"""Random distortions of an image together with its mask, each a function of an explicit generator."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


def resize(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(C, H, W), (H, W) -> (C, *size), (*size): the image bilinear with antialiasing, labels by nearest-exact.

    Plain "nearest" takes the pixel at floor(i * H / size), half a pixel up and left of the image; "nearest-exact"
    takes the pixel under the centre, as PIL does. Labels are never averaged.
    """
    if tuple(mask.shape) == size:
        return image, mask
    # uint8 because nearest on int64 goes through float; labels and 255 fit.
    labels = F.resize(mask[None].to(torch.uint8), list(size), InterpolationMode.NEAREST_EXACT)
    return resize_image(image, size), labels[0].to(mask.dtype)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) in [0, 1] -> (C, *size), bilinear with antialiasing."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True).clamp(0, 1)


def scaled_size(mask: Tensor, scale: float) -> tuple[int, int]:
    """Height and width of (H, W), or of an image (C, H, W), times `scale`, in whole pixels."""
    if scale <= 0:
        raise ValueError(f"scale must be more than 0, got {scale}")
    return max(1, round(scale * mask.shape[-2])), max(1, round(scale * mask.shape[-1]))


def deform(image: Tensor, mask: Tensor, vectors: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """(C, H, W), (H, W) -> the window [rows, columns] of both, in which every pixel shows what is displaced from it.

    `vectors` (2, 3, 3) are the displacements, down and right in pixels, on a grid from corner to corner; bicubic in
    between (U-Net, Sec. 3.1). The image is interpolated bilinearly, labels by nearest. Beyond its border both are
    mirrored at the border pixels, as U-Net extrapolates images (Sec. 2).
    """
    height, width = mask.shape
    down, right = torch.einsum("cij,ih,jw->chw", vectors, _bicubic(height)[:, rows], _bicubic(width)[:, columns])
    y, x = torch.arange(height)[rows, None] + down, torch.arange(width)[columns] + right
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)  # in [-1, 1], x first
    sample = partial(grid_sample, grid=grid[None], padding_mode="reflection", align_corners=True)
    labels = sample(mask[None, None].float(), mode="nearest")[0, 0].to(mask.dtype)  # whole numbers stay whole
    return sample(image[None], mode="bilinear")[0].clamp(0, 1), labels


def _bicubic(length: int) -> Tensor:
    """What each of three points spread over `length` pixels weighs at each of them: (3, length)."""
    return interpolate(torch.eye(3)[None, :, :, None], (length, 1), mode="bicubic", align_corners=True)[0, ..., 0]


@dataclass(frozen=True)
class Augmentation:
    """How training images are distorted at random.

    Args:
        crop: height and width in pixels of what is trained on, or one number for a square
        zoom: the scale is uniform between these two numbers
        flip: whether half of the images are mirrored
        jitter: largest relative change of brightness, contrast and (of RGB) saturation
        elastic: standard deviation in pixels by which images are deformed; U-Net has 10, and 0 deforms none

    Raises ValueError for values that have no meaning.
    """

    crop: int | tuple[int, int] = 256
    zoom: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.2
    elastic: float = 0.0

    def __post_init__(self) -> None:
        if (self.crop if isinstance(self.crop, int) else min(self.crop)) < 1:
            raise ValueError(f"crop must be at least 1 pixel high and wide, got {self.crop}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(
                f"zoom must be two positive numbers, the smaller first, such as (0.5, 2.0), got {self.zoom}"
            )
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and less than 1, got {self.jitter}")
        if not self.elastic >= 0:
            raise ValueError(f"elastic must be at least 0 pixels, got {self.elastic}")


class Place(NamedTuple):
    """The rows and columns of an image that are in a crop, the size they are scaled to, and whether they are mirrored
    then."""

    rows: slice
    columns: slice
    height: int
    width: int
    flipped: bool


class JointTransform(Augmentation):
    """Applies an `Augmentation`: image (C, H, W), mask (H, W) -> (C, *crop), (*crop). The image stays in [0, 1].

    The deformation interpolates a 3 x 3 grid of normal displacements in pixels of the image as it comes (U-Net,
    Sec. 3.1). Contrast is the distance to the mean grey level; of images neither grey nor RGB, to that of all channels.

    Where the scaled image is smaller than the crop it is padded on the right and at the bottom, as in DeepLab. The
    image is padded with its own mean of each channel, the mask with `ignore_index`.
    """

    crop: tuple[int, int]
    ignore_index = 255

    def __post_init__(self) -> None:
        super().__post_init__()
        crop: int | tuple[int, int] = self.crop
        object.__setattr__(self, "crop", (crop, crop) if isinstance(crop, int) else (crop[0], crop[1]))

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        place, (brightness, contrast, saturation) = self._drawn((mask.shape[0], mask.shape[1]), generator)
        vectors = torch.randn(2, 3, 3, generator=generator)
        rows, columns, height, width = place.rows, place.columns, place.height, place.width
        if self.elastic:
            image, mask = deform(image, mask, self.elastic * vectors, rows, columns)
        else:
            image, mask = image[:, rows, columns], mask[rows, columns]
        image, mask = resize(image, mask, (height, width))
        if place.flipped:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        if self.jitter and len(image) in (1, 3):
            image = F.adjust_brightness(image, self._factor(brightness))
            image = F.adjust_contrast(image, self._factor(contrast))
            image = F.adjust_saturation(image, self._factor(saturation))  # leaves a grey image alone
        elif self.jitter:  # torchvision's take grey and RGB alone
            image = (self._factor(brightness) * image).clamp(0, 1)
            image = torch.lerp(image.mean(), image, self._factor(contrast)).clamp(0, 1)
        return self._pad(image, mask)

    def boxes(self, boxes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Boxes (B, 5) of an image of `size` (H, W) where they are in its crop, if `generator` is as for the image.

        Columns are left, top, right, bottom in whole pixels and the category. What is cut off is left out, and so are
        boxes without a pixel in the crop. ValueError for a deformed image, in which a box is none.
        """
        if self.elastic:
            raise ValueError(f"elastic must be 0 where the data have boxes, got {self.elastic}: leave it out")
        place, _ = self._drawn(size, generator)
        ends = []
        for axis, (window, length) in enumerate(((place.columns, place.width), (place.rows, place.height))):
            within = (boxes[:, axis:4:2] - window.start).double() * (length / (window.stop - window.start))
            ends.append(within.round().long().clamp(0, length))
        (left, right), (top, bottom) = (end.unbind(1) for end in ends)
        if place.flipped:
            left, right = place.width - right, place.width - left
        kept = (right > left) & (bottom > top)
        return torch.stack([left, top, right, bottom, boxes[:, 4]], dim=1)[kept]

    def _drawn(self, size: tuple[int, int], generator: torch.Generator) -> tuple["Place", list[float]]:
        """What of an image of `size` (H, W) is in the crop, and the numbers in [0, 1] of its colours."""
        # All numbers are drawn at once, so that switching one distortion off does not change the others.
        zoom, top, left, flip, *colours = torch.rand(7, generator=generator).tolist()
        zoom = self.zoom[0] + zoom * (self.zoom[1] - self.zoom[0])
        rows, height = self._window(size[0], self.crop[0], zoom, top)
        columns, width = self._window(size[1], self.crop[1], zoom, left)
        return Place(rows, columns, height, width, flipped=self.flip and flip < 0.5), colours

    @staticmethod
    def _window(length: int, crop: int, zoom: float, position: float) -> tuple[slice, int]:
        """The pixels of one axis that end up in the crop and the length they are scaled to.

        Scaling only what survives the crop costs a fraction of scaling the image first. The window is a whole number
        of pixels, so the scale of an axis differs from `zoom` by less than half a pixel over the crop.
        """
        window = max(1, round(crop / zoom))
        if window > length:
            return slice(0, length), min(crop, max(1, round(length * zoom)))
        start = int(position * (length - window + 1))
        return slice(start, start + window), crop

    def _factor(self, uniform: float) -> float:
        return 1 + self.jitter * (2 * uniform - 1)

    def _pad(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        if (height, width) == self.crop:
            return image.contiguous(), mask.contiguous()
        padded = image.mean((1, 2))[:, None, None].repeat(1, *self.crop)
        padded[:, :height, :width] = image
        labels = mask.new_full(self.crop, self.ignore_index)
        labels[:height, :width] = mask
        return padded, labels
