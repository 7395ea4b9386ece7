"""Random distortions of an image together with its mask, each a function of an explicit generator."""

from functools import partial

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
    image = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return image.clamp(0, 1), labels[0].to(mask.dtype)


def scaled_size(mask: Tensor, scale: float) -> tuple[int, int]:
    """Height and width of (H, W) times `scale`, in whole pixels."""
    if scale <= 0:
        raise ValueError(f"scale must be more than 0, got {scale}")
    return max(1, round(scale * mask.shape[0])), max(1, round(scale * mask.shape[1]))


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


class JointTransform:
    """Random deformation, scale, crop, flip and photometric jitter: (C, H, W), (H, W) -> (C, *crop), (*crop).

    `elastic`: the image is deformed by displacements of a 3 x 3 grid, normal with this standard deviation in pixels
    of the image as it comes (U-Net, Sec. 3.1, has 10), 0 for none. `crop`: (height, width) in pixels, or one number for
    a square. `zoom`: the scale is uniform between these two. `flip`: mirror half of the images. `jitter`: brightness,
    contrast and (of RGB) saturation are each multiplied by a number uniform in [1 - jitter, 1 + jitter]; the image
    stays in [0, 1]. Contrast is the distance to the mean grey level, of images neither grey nor RGB to that of all channels.

    Where the scaled image is smaller than the crop it is padded on the right and at the bottom, as in DeepLab: the
    image with its own mean of each channel, the mask with `ignore_index`.
    """

    def __init__(
        self,
        crop: int | tuple[int, int],
        zoom: tuple[float, float],
        flip: bool,
        jitter: float,
        ignore_index: int = 255,
        *,
        elastic: float = 0.0,
    ) -> None:
        self.crop = (crop, crop) if isinstance(crop, int) else (crop[0], crop[1])
        if min(self.crop) < 1:
            raise ValueError(f"crop must be at least 1 pixel high and wide, got {crop}")
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"zoom must be two positive numbers, the smaller first, such as (0.5, 2.0), got {zoom}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and less than 1, got {jitter}")
        if not elastic >= 0:
            raise ValueError(f"elastic must be at least 0 pixels, got {elastic}")
        self.zoom, self.flip, self.jitter, self.ignore_index, self.elastic = zoom, flip, jitter, ignore_index, elastic

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # All numbers are drawn at once, so that switching one distortion off does not change the others.
        zoom, top, left, flip, brightness, contrast, saturation = torch.rand(7, generator=generator).tolist()
        vectors = torch.randn(2, 3, 3, generator=generator)
        zoom = self.zoom[0] + zoom * (self.zoom[1] - self.zoom[0])
        rows, height = self._window(mask.shape[0], self.crop[0], zoom, top)
        columns, width = self._window(mask.shape[1], self.crop[1], zoom, left)
        if self.elastic:
            image, mask = deform(image, mask, self.elastic * vectors, rows, columns)
        else:
            image, mask = image[:, rows, columns], mask[rows, columns]
        image, mask = resize(image, mask, (height, width))
        if self.flip and flip < 0.5:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        if self.jitter and len(image) in (1, 3):
            image = F.adjust_brightness(image, self._factor(brightness))
            image = F.adjust_contrast(image, self._factor(contrast))
            image = F.adjust_saturation(image, self._factor(saturation))  # leaves a grey image alone
        elif self.jitter:  # torchvision's take grey and RGB alone
            image = (self._factor(brightness) * image).clamp(0, 1)
            image = torch.lerp(image.mean(), image, self._factor(contrast)).clamp(0, 1)
        return self._pad(image, mask)

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
