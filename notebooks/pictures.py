"""What the notebooks draw with, and the photographs they look at."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

plt.rcParams.update({"figure.dpi": 72, "font.size": 10, "axes.titlesize": 10})


def array(picture: Any) -> np.ndarray:
    """A picture as pyplot takes it: (H, W), or (H, W, 3) of a tensor (3, H, W); one of a single channel is (H, W)."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        if picture.ndim == 3:
            picture = picture.movedim(0, -1).squeeze(-1)
        return picture.numpy()
    return np.asarray(picture)


def framed(axis: Axes, title: str) -> None:
    """A title and a thin frame, without which white would run into the page."""
    axis.set_title(title)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="0.7", linewidth=0.5)


def row(*pictures: Any, titles: Sequence[str] = (), height: float = 2.6, cmap: str = "gray", **how: Any) -> list[Axes]:
    """Pictures side by side, each under its title: (H, W), (H, W, 3) or tensors (C, H, W). `how` goes to `imshow`."""
    shapes = [array(picture).shape for picture in pictures]
    widths = [max(shape[1] / shape[0], 0.3) for shape in shapes]
    size = (height * sum(widths) + 0.2 * len(pictures), height + 0.4)
    _, axes = plt.subplots(
        1, len(pictures), figsize=size, layout="constrained", squeeze=False, gridspec_kw={"width_ratios": widths}
    )
    for axis, picture, title in zip(axes[0], pictures, [*titles, *[""] * len(pictures)], strict=False):
        axis.imshow(array(picture), cmap=cmap, interpolation="nearest", **how)
        framed(axis, title)
    return list(axes[0])


def numbers(*tables: Any, titles: Sequence[str] = (), cell: float = 0.45) -> list[Axes]:
    """Small matrices side by side as squares with their numbers written in them."""
    tables = tuple(np.asarray(array(table), dtype=float) for table in tables)
    widths = [table.shape[1] for table in tables]
    size = (cell * (sum(widths) + len(tables)), cell * max(len(table) for table in tables) + 0.5)
    _, axes = plt.subplots(
        1, len(tables), figsize=size, layout="constrained", squeeze=False, gridspec_kw={"width_ratios": widths}
    )
    for axis, table, title in zip(axes[0], tables, [*titles, *[""] * len(tables)], strict=False):
        axis.imshow(table, cmap="Blues", vmax=1.8 * max(float(np.abs(table).max()), 1e-9))
        for (i, j), value in np.ndenumerate(table):
            axis.text(j, i, f"{value:.4g}", ha="center", va="center", fontsize=9)
        framed(axis, title)
    return list(axes[0])


def coloured(labels: Tensor, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Labels (H, W) in the colours of their classes, (H, W, 3)."""
    return np.asarray(palette, dtype=np.uint8)[labels.numpy()]


def photograph(name: str, height: int | None = None) -> Tensor:
    """A photograph that scikit-image brings along ("chelsea", "coffee", "astronaut"): (3, H, W) in [0, 1].

    `height` resizes it. Sources and licences: https://scikit-image.org/docs/stable/api/skimage.data.html
    """
    from skimage import data

    from datamodules.transforms import resize_image

    image = torch.from_numpy(np.ascontiguousarray(getattr(data, name)())).float() / 255
    image = image[None] if image.ndim == 2 else image.movedim(-1, 0)[:3]
    return image if height is None else resize_image(image, (height, round(height * image.shape[2] / image.shape[1])))
