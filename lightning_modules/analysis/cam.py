"""Which places of a layer's map speak for a class at a pixel: Seg-Grad-CAM.

Vinogradova, Dibrov, Myers 2020, https://arxiv.org/abs/2002.11434, of Grad-CAM, Selvaraju et al. 2017,
https://arxiv.org/abs/1610.02391: the maps of a layer, each weighted by the mean of the gradient of a sum of logits.
"""

import torch
from torch import Tensor, nn

from lightning_modules.analysis.receptive_field import ReceptiveField, evaluating, watched


def seg_grad_cam(network: nn.Module, image: Tensor, layer: str, label: int, region: Tensor) -> Tensor:
    """Image (1, C, H, W) -> the activation map (h, w) of `layer` for the class `label`, at least 0 (Eq. 2).

    The logits of `label` are summed over the pixels of `region` (H, W), which is True at those that are asked for: at
    one pixel, or at many. `layer` is the path of a module that returns a map; one that is called several times counts
    as called first. The network evaluates meanwhile. ValueError for a path of no map, and for a map that no logit of
    the region comes from.
    """
    maps: list[Tensor] = []

    def see(path: str, output: Tensor) -> None:
        if path == layer and not maps:
            maps.append(output)

    with evaluating(network), torch.enable_grad(), watched(network, see):
        logits = network(image.detach().clone().requires_grad_())
    if not maps or maps[0].dim() != 4:
        raise ValueError(f"layer must be the path of a module that returns a map (N, C, h, w), got {layer!r}")
    score = logits[0, label][region].sum()
    linked = score.requires_grad and maps[0].requires_grad
    gradient = torch.autograd.grad(score, maps[0], allow_unused=True)[0] if linked else None
    if gradient is None:
        raise ValueError(f"layer {layer!r} returns a map that no logit comes from: name another layer")
    weights = gradient.mean((2, 3), keepdim=True)  # alpha of Eq. 1, one a channel
    return (weights * maps[0].detach()).sum(1)[0].relu()


def spread(cam: Tensor, height: int, width: int, field: ReceptiveField | None = None) -> Tensor:
    """A map (h, w) over the image (height, width), bilinear: each unit stands where the centre of its field is.

    Without a known centre the map covers the image from border to border, as for `F.interpolate` without
    align_corners. Beyond the outermost units their values are repeated.
    """
    rows, columns = (
        _between(units, pixels, None if field is None or field.offset is None else (field.offset[a], field.stride[a]))
        for a, (units, pixels) in enumerate(zip(cam.shape, (height, width), strict=True))
    )
    return rows.to(cam) @ cam @ columns.to(cam).T


def _between(units: int, pixels: int, place: tuple[float, float] | None) -> Tensor:
    """(pixels, units): the share that each unit has in the value of each pixel."""
    offset, stride = place if place is not None else ((pixels / units - 1) / 2, pixels / units)
    at = ((torch.arange(pixels, dtype=torch.float64) - offset) / stride).clamp(0, units - 1)
    return (1 - (at[:, None] - torch.arange(units)).abs()).clamp(min=0)
