"""Any encoder of segmentation_models_pytorch and timm behind the contract of the native ones.

Iakubovskii, Segmentation Models Pytorch, https://github.com/qubvel-org/segmentation_models.pytorch
Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models

Both are imported where they are used: that takes a second or two, and most networks have no encoder of theirs.
"""

import copy
import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.components.blocks import crop, pad_to_multiple, round_up
from lightning_modules.components.encoders.base import Encoder
from lightning_modules.components.encoders.weights import (
    CLASSIFIER,
    Normalisation,
    State,
    adapt_input,
    check_names,
    downloading,
    first_conv,
    is_path,
    normalisation_of,
    read_normalisation,
    read_package,
    read_weights,
)

WITH_OUTPUT_STRIDE = (
    "; use output_stride=32, one of smp's ResNets, EfficientNets or MobileNets, or the native vgg16, resnet50, "
    "xception65 or mobilenet_v1"
)
ANY_IMAGE = "; use an encoder with maps at strides 2 to 32 of images of any size, such as 'tu-convnext_atto'"
# timm's argument with which models made for one size of image take any, by the file that they are in.
ANY_SIZE = {
    "swin_transformer": ("strict_img_size", False),
    "swin_transformer_v2": ("strict_img_size", False),
    "swin_transformer_v2_cr": ("strict_img_size", False),
    "deit": ("dynamic_img_size", True),
    "eva": ("dynamic_img_size", True),
    "vision_transformer": ("dynamic_img_size", True),
}
PROBE = (96, 160)  # a size that windows of 7, 8 and 12 do not divide at every stride


class SmpEncoder(Encoder):
    """The encoder `name` of smp, or of timm where it begins with "tu-"; images are mirrored up to a multiple of 32.

    Map 0 is the image where the encoder has none of its own at stride 1; map 1 of a transformer has no channels. Layers
    that reach no map are taken out, or frozen where the encoder cannot run without them.
    """

    def __init__(
        self, name: str, in_channels: int = 3, *, depth: int = 5, output_stride: int = 32, weights: str | None = None
    ) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        fetched = to_download(name, weights)
        arguments = {"in_channels": in_channels, "depth": depth, "output_stride": output_stride}
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        asked = f"encoder={name!r} cannot be had with {arguments}"
        way_out = ANY_IMAGE if output_stride == 32 else WITH_OUTPUT_STRIDE
        with downloading(name, fetched), explaining(asked, name, way_out, fetched):
            self.model: Any = smp.encoders.get_encoder(name, weights=fetched, **arguments, **any_size(name))
        with explaining(asked, name, way_out):
            probe = Probe(self.model, in_channels, *PROBE)
            sizes = [tuple(m.shape[2:]) for m in probe.outputs]
            if sizes != [(PROBE[0] // stride, PROBE[1] // stride) for stride in self._strides()]:
                raise ValueError(f"its maps of an image of {PROBE} have the sizes {sizes}")
        self.mean, self.std = load_smp(self.model, name, weights, in_channels)
        self.out_channels = tuple(self.model.out_channels)
        probe.drop_unused(self.model)

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        maps = self.model(pad_to_multiple(x, 32))
        return [crop(m, round_up(height, s), round_up(width, s)) for m, s in zip(maps, self._strides(), strict=True)]

    def _strides(self) -> list[int]:
        return [min(2**index, self.output_stride) for index in range(self.depth + 1)]


def to_download(name: str, weights: str | None) -> str | bool | None:
    """What smp is asked to download for the encoder `name`: nothing for weights=None, a path or "package".

    Raises:
        ValueError: for an encoder or weights that neither smp nor timm has.
    """
    import segmentation_models_pytorch as smp
    import timm

    encoders = smp.encoders.encoders
    if name.startswith("tu-"):
        if not timm.is_model(name[3:]):
            near = difflib.get_close_matches(name[3:], timm.list_models(), n=3)
            raise ValueError(f"encoder={name!r}: timm has no {name[3:]!r}{_nearest(near)}")
        try:
            timm.get_pretrained_cfg(name[3:])
        except RuntimeError as error:
            raise ValueError(f"encoder={name!r}: {error} Leave out what follows the dot, or see timm's names") from None
    elif name not in encoders and not name.startswith("timm-"):
        near = difflib.get_close_matches(name, encoders, n=3)
        raise ValueError(
            f"encoder must be a native one, one of smp's or 'tu-<name in timm>', got {name!r}{_nearest(near)}"
        )
    if weights is None or weights == "package" or is_path(weights):
        return None
    names = list(encoders[name]["pretrained_settings"]) if name in encoders else ["imagenet"]
    if weights not in names:
        raise ValueError(
            f"weights of {name} must be None, {', '.join(names)}, or the path of a file or folder, got {weights!r}"
        )
    return weights if name in encoders else True  # timm names the weights in the encoder's name, after a dot


def load_smp(model: Any, name: str, weights: str | None, in_channels: int) -> Normalisation:
    """Loads `weights` into the encoder `model` that smp made for `name`, unless it has downloaded them by itself.

    Returns the mean and std that the weights were trained with, None where they are not known.
    """
    if weights is None:
        return None, None
    if is_path(weights):
        _load_state(model, name, read_weights(weights), weights, in_channels)
        return read_normalisation(weights, name[3:] if name.startswith("tu-") else None, in_channels)
    if weights == "package":
        architecture = name.removeprefix("tu-").split(".")[0]
        _load_state(model, name, read_package(architecture), weights, in_channels)
    import segmentation_models_pytorch as smp

    with downloading(name, None if name.startswith("tu-") else weights):
        return normalisation_of(smp.encoders.get_preprocessing_params(name, weights), in_channels)


def any_size(name: str) -> dict[str, bool]:
    """timm's argument that lets the encoder `name` take images of any size, nothing where it has no such."""
    if not name.startswith("tu-"):
        return {}
    import timm

    file = timm.model_entrypoint(name[3:].split(".")[0]).__module__.rpartition(".")[2]
    return dict([ANY_SIZE[file]]) if file in ANY_SIZE else {}


@contextmanager
def explaining(asked: str, name: str, way_out: str, fetched: str | bool | None = None) -> Iterator[None]:
    """Whatever smp or timm raise for the encoder `name` says what was `asked` of them, why not, and what to do.

    Errors of a download, where something is `fetched`, are left to `downloading`.
    """
    import timm

    try:
        yield
    except Exception as error:  # of every kind, for what they do not foresee
        if fetched is not None and isinstance(error, OSError | RuntimeError):
            raise
        config: Any = timm.get_pretrained_cfg(name[3:]) if name.startswith("tu-") else None
        if config is not None and config.fixed_input_size:
            height, width = config.input_size[1:]
            asked += f", which timm makes for images of {height} x {width}"
        raise ValueError(f"{asked}: {error!r}{way_out}") from error


def _load_state(model: Any, name: str, state: State, weights: str, in_channels: int) -> None:
    """Loads a state dict of the encoder, as smp or we save it, or of the classifier of which it is a part."""
    import segmentation_models_pytorch as smp
    import timm
    from segmentation_models_pytorch.encoders import TimmUniversalEncoder

    if "model." + next(iter(model.state_dict())) in state:  # of an SmpEncoder
        state = {key.removeprefix("model."): value for key, value in state.items()}
    if isinstance(model, TimmUniversalEncoder) and not all(key.startswith("model.") for key in state):
        # timm cuts a classifier up into features after it has loaded it, and renames layers on the way.
        whole = timm.create_model(model.name, in_chans=in_channels)
        wanted = {key: value for key, value in whole.state_dict().items() if not key.startswith(CLASSIFIER)}
        check_names(adapt_input(state, first_conv(whole), in_channels), wanted, name, weights)
        if next(model.parameters()).is_meta:  # a network that is only described has nothing to load into
            return
        log = logging.getLogger("timm.models._builder")
        log.disabled = True  # it warns of the classifier's weights; all others have just been checked
        try:
            overlay = {"state_dict": dict(state)}
            made = smp.encoders.get_encoder(
                name, in_channels, model._depth, weights=True, pretrained_cfg_overlay=overlay, **any_size(name)
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


class Probe:
    """A copy of `model` without memory that has been given an image (1, in_channels, height, width), its `outputs`, and
    a gradient where an output depends on a parameter.
    """

    def __init__(self, model: nn.Module, in_channels: int, height: int, width: int) -> None:
        self.model = copy.deepcopy(model).to("meta").eval()
        self.image = torch.empty(1, in_channels, height, width, device="meta")
        with torch.enable_grad():
            outputs = self.model(self.image)
            self.outputs: list[Tensor] = [outputs] if isinstance(outputs, Tensor) else outputs
            torch.autograd.backward([m.sum() for m in self.outputs if m.requires_grad])

    def drop_unused(self, model: nn.Module) -> None:
        """Takes every layer out of `model` that no output depends on: below `depth`, and what led to a classifier.

        Where the model reads such a layer itself, rather than what it returns, they stay and their parameters are
        frozen.
        """
        for parameter, twin in zip(model.parameters(), self.model.parameters(), strict=True):
            parameter.requires_grad_(twin.grad is not None)
        without = copy.deepcopy(self.model)
        _take_out(without, self.model)
        try:
            with torch.no_grad():
                without(self.image)
        except Exception:  # noqa: BLE001  of any kind: it is the model's own code that misses the layer
            return
        _take_out(model, self.model)


def _take_out(model: nn.Module, probe: nn.Module) -> None:
    for name, child in list(model.named_children()):
        twin = probe.get_submodule(name)
        parameters = list(twin.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(model, name, Unused())
        else:
            _take_out(child, twin)


def _nearest(names: list[str]) -> str:
    return f"; the nearest are {', '.join(names)}" if names else ""
