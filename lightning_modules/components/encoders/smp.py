"""Any encoder of segmentation_models_pytorch and timm behind the contract of the native ones.

Iakubovskii, Segmentation Models Pytorch, https://github.com/qubvel-org/segmentation_models.pytorch
Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

import copy
import difflib
import logging
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

from lightning_modules.components.blocks import pad_to_multiple
from lightning_modules.components.encoders.base import Encoder
from lightning_modules.components.encoders.weights import (
    CLASSIFIER,
    State,
    adapt_input,
    check_names,
    downloading,
    first_conv,
    is_path,
    of_channels,
    read_package,
    read_weights,
)

WITH_OUTPUT_STRIDE = (
    "use output_stride=32, one of smp's ResNets, EfficientNets or MobileNets, or the native vgg16, resnet50, xception65 "
    "or mobilenet_v1"
)
Normalisation = tuple[tuple[float, ...] | None, tuple[float, ...] | None]  # mean and std


class SmpEncoder(Encoder):
    """The encoder `name` of smp, or of timm where it begins with "tu-"; any image size, mirrored up to a multiple of 32.

    Map 0 is the image where the encoder has none of its own at stride 1; map 1 of a transformer has no channels.
    """

    def __init__(
        self, name: str, in_channels: int = 3, *, depth: int = 5, output_stride: int = 32, weights: str | None = None
    ) -> None:
        super().__init__()
        fetched = to_download(name, weights)
        arguments = {"in_channels": in_channels, "depth": depth, "output_stride": output_stride}
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        with downloading(name, fetched):
            try:
                self.model: Any = smp.encoders.get_encoder(name, weights=fetched, **arguments)
                probe, sizes = _probe(self.model, in_channels)
                if sizes != [64 // stride for stride in self._strides()]:
                    raise ValueError(f"its maps of a 64 x 64 image have sides {sizes}")
            except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
                way_out = "" if output_stride == 32 else f"; {WITH_OUTPUT_STRIDE}"
                raise ValueError(f"encoder={name!r} cannot be had with {arguments}: {error!r}{way_out}") from error
        self.mean, self.std = load_smp(self.model, name, weights, in_channels)
        self.out_channels = tuple(self.model.out_channels)
        _drop_unused(self.model, probe)

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        maps = self.model(pad_to_multiple(x, 32))
        return [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self._strides(), strict=True)]

    def _strides(self) -> list[int]:
        return [min(2**index, self.output_stride) for index in range(self.depth + 1)]


def to_download(name: str, weights: str | None) -> str | bool | None:
    """What smp is asked to download for the encoder `name`: nothing for weights=None, a path or "package".

    Raises:
        ValueError: for an encoder or weights that neither smp nor timm has.
    """
    known = smp.encoders.encoders
    if name.startswith("tu-"):
        if not timm.is_model(name[3:]):
            near = difflib.get_close_matches(name[3:], timm.list_models(), n=3)
            raise ValueError(f"encoder={name!r}: timm has no {name[3:]!r}{_nearest(near)}")
        try:
            timm.get_pretrained_cfg(name[3:])
        except RuntimeError as error:
            raise ValueError(f"encoder={name!r}: {error} Leave out what follows the dot, or see timm's names") from None
    elif name not in known and not name.startswith("timm-"):
        near = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"encoder must be a native one, one of smp's or 'tu-<name in timm>', got {name!r}{_nearest(near)}"
        )
    if weights is None or weights == "package" or is_path(weights):
        return None
    names = list(known[name]["pretrained_settings"]) if name in known else ["imagenet"]
    if weights not in names:
        raise ValueError(
            f"weights of {name} must be None, {', '.join(names)}, or the path of a file or folder, got {weights!r}"
        )
    return weights if name in known else True  # timm names the weights in the encoder's name, after a dot


def load_smp(model: Any, name: str, weights: str | None, in_channels: int) -> Normalisation:
    """Loads `weights` into the encoder `model` that smp made for `name`, unless it has downloaded them by itself.

    Returns the mean and std that the weights were trained with, None where they are not known.
    """
    if weights is None:
        return None, None
    if is_path(weights):
        _load_state(model, name, read_weights(weights), weights, in_channels)
        return None, None
    if weights == "package":
        architecture = name.removeprefix("tu-").split(".")[0]
        _load_state(model, name, read_package(architecture), weights, in_channels)
    with downloading(name, None if name.startswith("tu-") else weights):
        normalisation = smp.encoders.get_preprocessing_params(name, weights)
    scale = max(normalisation["input_range"])  # 255 where the weights know images from 0 to 255
    mean, std = ([value / scale for value in normalisation[key]] for key in ("mean", "std"))
    return of_channels(mean, in_channels), of_channels(std, in_channels)


def _load_state(model: Any, name: str, state: State, weights: str, in_channels: int) -> None:
    """Loads a state dict of the encoder, as smp or we save it, or of the classifier of which it is a part."""
    if "model." + next(iter(model.state_dict())) in state:  # of an SmpEncoder
        state = {key.removeprefix("model."): value for key, value in state.items()}
    if isinstance(model, TimmUniversalEncoder) and not all(key.startswith("model.") for key in state):
        # timm cuts a classifier up into features after it has loaded it, and renames layers on the way.
        whole = timm.create_model(model.name, in_chans=in_channels)
        wanted = {key: value for key, value in whole.state_dict().items() if not key.startswith(CLASSIFIER)}
        check_names(adapt_input(state, first_conv(whole), in_channels), wanted, name, weights)
        log = logging.getLogger("timm.models._builder")
        log.disabled = True  # it warns of the classifier's weights; all others have just been checked
        try:
            overlay = {"state_dict": dict(state)}
            made = smp.encoders.get_encoder(
                name, in_channels, model._depth, weights=True, pretrained_cfg_overlay=overlay
            )
        finally:
            log.disabled = False
        model.load_state_dict(made.state_dict())
        return
    state = adapt_input(state, first_conv(model), in_channels)
    try:
        model.load_state_dict(dict(state))  # smp's own, which knows the older names of some
    except RuntimeError as error:
        check_names(state, model.state_dict(), name, weights)
        raise ValueError(f"weights={weights!r} do not fit encoder={name!r}: {error}") from error


class Unused(nn.Module):
    """Stands where a layer was whose output reaches no map; some encoders of smp go on calling it."""

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        return x


def _probe(model: nn.Module, in_channels: int) -> tuple[nn.Module, list[int]]:
    """A copy of `model` without memory whose parameters have a gradient if a map depends on them, and the maps' sides."""
    probe = copy.deepcopy(model).to("meta").eval()
    with torch.enable_grad():
        maps = probe(torch.empty(1, in_channels, 64, 64, device="meta"))
        torch.autograd.backward([m.sum() for m in maps if m.requires_grad])
    return probe, [m.shape[-1] for m in maps]


def _drop_unused(model: nn.Module, probe: nn.Module) -> None:
    """Takes out every layer that no map depends on: stages below `depth`, and what led to a classifier."""
    for name, child in list(model.named_children()):
        twin = probe.get_submodule(name)
        parameters = list(twin.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(model, name, Unused())
        else:
            _drop_unused(child, twin)


def _nearest(names: list[str]) -> str:
    return f"; the nearest are {', '.join(names)}" if names else ""
