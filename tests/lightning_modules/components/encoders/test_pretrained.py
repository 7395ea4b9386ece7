import json
import re
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import sklearn.datasets
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize, to_tensor

from lightning_modules.components.encoders import NATIVE, build_encoder
from lightning_modules.components.encoders.weights import (
    PACKAGES,
    check_names,
    first_conv,
    read_package,
    read_weights,
)
from lightning_modules.recipe import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.smp import SmpModule

HALF = (0.5, 0.5, 0.5)
pretrained = pytest.mark.extra("pretrained", *PACKAGES.values())


def photograph(name: str) -> Tensor:
    """(1, 3, 240, 240) in [0, 1]: the middle of a photograph that scikit-learn brings along."""
    image = Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
    return to_tensor(resize(center_crop(image, [min(image.size)] * 2), [240, 240]))[None]


# --- weights that a package brings along


@pretrained
@pytest.mark.parametrize(
    ("architecture", "picture", "label"),
    [
        ("tf_efficientnet_lite0", "china", 698),  # "palace" of ImageNet's 1000 classes
        ("tf_efficientnet_lite1", "china", 698),
        ("tf_efficientnet_lite2", "china", 698),
        ("tf_efficientnet_lite0", "flower", 985),  # "daisy"
    ],
)
def test_weights_of_the_packages_know_a_photograph(architecture: str, picture: str, label: int) -> None:
    classifier = timm.create_model(architecture).eval()
    classifier.load_state_dict(read_package(architecture))  # strict
    with torch.no_grad():
        logits = classifier((photograph(picture) - 0.5) / 0.5)
    assert label in logits.topk(5).indices
    assert label == logits.argmax()


@pretrained
@pytest.mark.parametrize("architecture", PACKAGES)
def test_encoder_with_weights_of_a_package_is_the_classifier_s(architecture: str) -> None:
    classifier = timm.create_model(architecture).eval()
    classifier.load_state_dict(read_package(architecture))
    encoder = build_encoder(f"tu-{architecture}", weights="package").eval()
    x = (photograph("flower") - 0.5)[..., :224, :224] / 0.5
    with torch.no_grad():
        expected = classifier.blocks(classifier.bn1(classifier.conv_stem(x)))
        torch.testing.assert_close(encoder(x)[-1], expected)
    assert (encoder.mean, encoder.std) == (HALF, HALF)


@pretrained
def test_weights_of_a_package_in_any_smp_architecture() -> None:
    module = SmpModule(2, 255, arch="FPN", encoder="tu-tf_efficientnet_lite0", weights="package")
    encoder = build_encoder("tu-tf_efficientnet_lite0", weights="package")
    own = module.network.encoder.state_dict()
    assert own.keys() == encoder.model.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in encoder.model.state_dict().items())
    assert (module.mean.flatten().tolist(), module.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)


@pretrained
def test_a_given_mean_stays() -> None:
    arguments = {"encoder": "tu-tf_efficientnet_lite0", "weights": "package", "in_channels": 1}
    module = SmpModule(2, 255, mean=[0.25], **arguments)  # type: ignore[arg-type]
    assert (module.mean.item(), module.std.item()) == (0.25, 0.5)


def test_packages_are_named_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"exists for the encoders tu-tf_efficientnet_lite0, .*got 'resnet18'"):
        build_encoder("smp-resnet18", weights="package")
    with pytest.raises(ValueError, match="'package' is for the encoders tu-tf_efficientnet_lite0"):
        build_encoder("resnet18", weights="package")


# --- files and folders


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize("kind", ["x.pth", "x.pt", "x.bin", "x.safetensors", "folder", "wrapped.pth", "snapshot"])
def test_a_file_or_folder_of_torchvision_s_or_timm_s_weights_loads(kind: str, tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    path = tmp_path / ("model.safetensors" if kind in ("folder", "snapshot") else kind)
    if kind == "snapshot":
        torch.save({}, tmp_path / "pytorch_model.bin")
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped.pth" else state, path)
    encoder = build_encoder("resnet18", weights=str(tmp_path if kind in ("folder", "snapshot") else path))
    assert same(encoder.state_dict(), {name: value for name, value in state.items() if not name.startswith("fc.")})
    assert encoder.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["xception65", "mobilenet_v1", "smp-resnet18", "tu-mobilenetv3_small_050", "mit_b0"])
def test_an_encoder_s_own_state_dict_loads(name: str, tmp_path: Path) -> None:
    width = 1 / 16 if name in NATIVE else 1.0
    source = build_encoder(name, width=width, output_stride=16)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    loaded = build_encoder(name, width=width, output_stride=16, weights=str(tmp_path / "own.pth"))
    assert same(loaded.state_dict(), source.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_lite0"])
def test_timm_encoders_take_the_weights_of_timm_s_classifier(name: str, tmp_path: Path) -> None:
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    encoder = build_encoder(f"tu-{name}", weights=str(tmp_path / "timm.pth")).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = whole.forward_intermediates(x, intermediates_only=True)
        for m, expected in zip(encoder(x)[-3:], maps[-3:], strict=True):
            torch.testing.assert_close(m, expected)


def test_fewer_stages_take_their_part_of_the_whole_file_and_still_want_the_rest(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "whole.pth")
    encoder = build_encoder("resnet18", depth=2, weights=str(tmp_path / "whole.pth"))
    assert torch.equal(encoder.state_dict()["layer1.1.conv2.weight"], state["layer1.1.conv2.weight"])
    del state["layer4.1.bn2.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 names are missing, the first 'layer4.1.bn2.bias'"):
        build_encoder("resnet18", depth=2, weights=str(tmp_path / "part.pth"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("vgg16", {"norm": "batch"}), *((name, {}) for name in NATIVE if name != "mobilenet_v1")],
)
def test_published_weights_fit_every_native_encoder_by_name_and_shape(name: str, options: dict[str, str]) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, **options)
        assert encoder.pretrained is not None
        state = timm.create_model(encoder.pretrained).state_dict()
    for pattern, new in encoder.renames:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    assert check_names(state, encoder.state_dict(), name, "imagenet").keys() == encoder.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "smp-resnet18", "tu-resnet18"])
@pytest.mark.parametrize("in_channels", [1, 2, 4, 5, 12])
def test_the_first_convolution_is_made_for_the_channels(name: str, in_channels: int, tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "rgb.pth")
    encoder = build_encoder(name, in_channels, weights=str(tmp_path / "rgb.pth")).eval()
    grey = torch.rand(1, 1, 32, 32)
    rgb = build_encoder(name, weights=str(tmp_path / "rgb.pth")).eval()
    (weight,) = (
        value for key, value in encoder.state_dict().items() if key.endswith("conv1.weight") and "layer" not in key
    )
    source = state["conv1.weight"]
    if in_channels == 1:
        torch.testing.assert_close(weight, source.sum(1, keepdim=True))
        torch.testing.assert_close(encoder(grey)[-1], rgb(grey.expand(1, 3, 32, 32))[-1], rtol=1e-4, atol=1e-4)
    else:
        repeated = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2][:in_channels]
        torch.testing.assert_close(weight, source[:, repeated] * 3 / in_channels)
    assert encoder(torch.rand(1, in_channels, 32, 32))[-1].isfinite().all()
    expected = [] if encoder.mean is None else [sum(of) / 3 for of in (IMAGENET_MEAN, IMAGENET_STD)]
    for values, value in zip((encoder.mean, encoder.std), expected, strict=False):
        assert values == pytest.approx((value,) * in_channels)


@pytest.mark.parametrize("in_channels", [2, 4, 5, 12])
@pytest.mark.parametrize("name", ["vgg16", "resnet50-deep", "xception65", "mobilenet_v1", "tu-convnext_atto"])
def test_so_is_that_of_every_kind_of_encoder(name: str, in_channels: int, tmp_path: Path) -> None:
    width = 1 / 16 if name in NATIVE else 1.0
    rgb = build_encoder(name, width=width)
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    encoder = build_encoder(name, in_channels, width=width, weights=str(tmp_path / "rgb.pth"))
    key = first_conv(rgb)
    states = encoder.state_dict(), rgb.state_dict()
    torch.testing.assert_close(states[0][key], states[1][key][:, torch.arange(in_channels) % 3] * 3 / in_channels)
    assert all(torch.equal(states[0][other], states[1][other]) for other in states[1] if other != key)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("xception65", HALF, HALF),  # as timm has its weights, not ImageNet's
        ("tu-tf_efficientnet_lite0", HALF, HALF),
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("mobilenet_v1", None, None),  # no weights are published, and smp says its own only where it downloads
        ("smp-resnet18", None, None),
    ],
)
def test_a_bare_file_is_normalised_as_the_published_weights(
    name: str, mean: object, std: object, tmp_path: Path
) -> None:
    width = 1 / 16 if name in NATIVE else 1.0
    torch.save(build_encoder(name, width=width).state_dict(), tmp_path / "own.pth")
    encoder = build_encoder(name, width=width, weights=str(tmp_path / "own.pth"))
    assert (encoder.mean, encoder.std) == (mean, std)


@pytest.mark.parametrize("name", ["resnet18", "smp-resnet18", "tu-resnet18"])
@pytest.mark.parametrize("nested", [True, False])
def test_the_config_of_a_folder_says_the_normalisation(name: str, nested: bool, tmp_path: Path) -> None:
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "model.safetensors")
    said = {"mean": [25.5, 51.0, 76.5], "std": [51.0] * 3, "input_range": [0, 255]}
    config = {"architecture": "resnet18", "pretrained_cfg": said} if nested else said
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = build_encoder(name, weights=str(tmp_path))
    assert encoder.mean == pytest.approx((0.1, 0.2, 0.3))
    assert encoder.std == pytest.approx((0.2, 0.2, 0.2))
    assert build_encoder(name, 1, weights=str(tmp_path)).mean == pytest.approx((0.2,))


def test_what_the_user_gives_wins_over_the_config_of_a_folder(tmp_path: Path) -> None:
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": HALF, "std": HALF}}))
    module = SmpModule(2, 255, encoder="resnet18", weights=str(tmp_path), mean=[0.25] * 3)
    assert (module.mean.flatten().tolist(), module.std.flatten().tolist()) == ([0.25] * 3, [0.5] * 3)


@pytest.mark.parametrize("text", ["{", "[]", '{"pretrained_cfg": {"mean": 0.5, "std": [1]}}'])
def test_a_config_that_says_nothing_readable_is_refused(text: str, tmp_path: Path) -> None:
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"weights=.*its config.json must hold mean and std .* mend or remove it"):
        build_encoder("resnet18", weights=str(tmp_path))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    def fails(state: dict[str, Tensor], message: str, name: str = "resnet18") -> None:
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            build_encoder(name, weights=str(tmp_path / "x.pth"))

    state = torchvision.models.resnet18().state_dict()
    fails(state | {"layer5.weight": torch.zeros(1)}, "1 are unexpected, the first 'layer5.weight'")
    fails(
        state | {"conv1.weight": torch.zeros(32, 3, 7, 7)},
        re.escape("1 have another shape, the first 'conv1.weight' has (32, 3, 7, 7), not (64, 3, 7, 7)"),
    )
    fails({"conv1.weight": state["conv1.weight"]}, "are missing, the first 'bn1.weight'")
    fails({"conv1.weight": state["conv1.weight"]}, "are missing, the first 'bn1.weight'", "smp-resnet18")
    fails({"conv1.weight": state["conv1.weight"]}, "are missing, the first 'bn1.weight'", "tu-resnet18")
    fails({"epoch": 3}, "is no state dict")  # type: ignore[dict-item]
    (tmp_path / "text.bin").write_text("weights")
    with pytest.raises(ValueError, match=r"is no file of weights \(text.bin"):
        read_weights(str(tmp_path / "text.bin"))
    with pytest.raises(ValueError, match=r"one file of weights, found text.bin, x.pth"):
        read_weights(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="one file of weights, found none"):
        build_encoder("resnet18", weights=str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"no/such.pth"):
        build_encoder("resnet18", weights="no/such.pth")


# --- names


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet18", "imagnet", "must be None, 'imagenet' or the path of a file or folder, got 'imagnet'"),
        ("smp-resnet18", "imagnet", "must be None, imagenet, ssl, swsl, or the path"),
        ("tu-resnet18", "imagnet", "must be None, imagenet, or the path"),
        ("mobilenet_v1", "imagenet", "no published ImageNet weights fit this mobilenet_v1"),
    ],
)
def test_a_wrong_name_of_weights_names_the_right_ones(name: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, weights=weights)


@pytest.mark.parametrize("name", ["resnet18", "smp-resnet18", "tu-resnet18", "module"])
def test_without_a_network_the_error_comes_soon_and_says_what_to_pass(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"weights=None, weights=<path of a file or folder .* weights='package'"):
        if name == "module":
            SmpModule(2, 255, encoder="resnet18", weights="imagenet")
        else:
            build_encoder(name, weights="imagenet")
    assert time.monotonic() - start < 15  # its client alone would try for 25 seconds a file
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
