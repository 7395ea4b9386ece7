from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.ablate_fcn_strides import STUDY
from experiments.runs.run import defaults
from lightning_modules.components.encoders.vgg import convolutionalise_
from lightning_modules.components.schedules import OPTIMIZERS
from lightning_modules.components.upsampling import bilinear_kernel
from lightning_modules.crf_as_rnn import CRFasRNNModule
from lightning_modules.fcn import FCN, IMAGE_OFFSETS, POOL_OFFSETS, STRIDES, FCNModule
from lightning_modules.pointrend import PointRendModule

TINY: dict[str, Any] = {"encoder_width": 1 / 16, "fc_width": 8}


def parameters(network: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


def on_meta(**kwargs: Any) -> FCN:
    with torch.device("meta"):
        return FCN(21, **kwargs)


def draw_scores_(network: FCN) -> None:
    """Scores start at zero, and so do all logits."""
    for parameter in network.scores.parameters():
        nn.init.normal_(parameter)


@pytest.mark.parametrize(
    ("stride", "total", "trained"),
    [(32, 136_152_917, 134_346_581), (16, 134_815_994, 134_357_354), (8, 134_489_759, 134_362_751)],
)
def test_published_parameter_counts(stride: int, total: int, trained: int) -> None:
    network = on_meta(stride=stride)
    assert parameters(network) == total
    assert parameters(network, trained=True) == trained


@pytest.mark.parametrize(
    ("upsampling", "learned"),
    # 21 x 21 kernels of 4 x 4 twice, and of 16 x 16
    [("frozen", 0), ("inner", 2 * 21 * 21 * 4 * 4), ("learned", 2 * 21 * 21 * 4 * 4 + 21 * 21 * 16 * 16)],
)
def test_upsampling_decides_which_bilinear_kernels_are_learned(upsampling: str, learned: int) -> None:
    assert parameters(on_meta(upsampling=upsampling), trained=True) == 134_362_751 + learned


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 96), (25, 161)])
def test_logits_have_the_size_of_the_image(stride: int, size: tuple[int, int]) -> None:
    network = FCN(3, stride=stride, **TINY).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def published(x: Tensor, network: FCN, stride: int, scales: tuple[float, float]) -> Tensor:
    """The authors' voc-fcn*/net.py spelled out, with the weights of `network`; voc-fcn8s-atonce/net.py has `scales`."""
    convs = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    pools: list[Tensor] = []
    for stage in (2, 2, 3, 3, 3):
        for _ in range(stage):
            conv = convs.pop(0)
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1 if pools or conv.in_channels != 3 else 100))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    x = F.relu(F.conv2d(x, network.fc6.weight, network.fc6.bias))
    x = F.relu(F.conv2d(x, network.fc7.weight, network.fc7.bias))
    score, *skips = ((s.weight, s.bias) for s in network.scores)
    x = F.conv2d(x, *score)
    for pool, skip, scale, offset in zip((pools[3], pools[2]), skips, scales, (5, 9), strict=False):
        x = F.conv_transpose2d(x, bilinear_kernel(3, 2), stride=2)
        height, width = x.shape[-2:]
        x = x + F.conv2d(scale * pool, *skip)[..., offset : offset + height, offset : offset + width]
    return F.conv_transpose2d(x, bilinear_kernel(3, stride), stride=stride)


@pytest.mark.parametrize(("stride", "offset"), [(32, 19), (16, 27), (8, 31)])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.01, 0.0001)])
def test_equals_the_published_network_spelled_out(stride: int, offset: int, scales: tuple[float, float]) -> None:
    network = FCN(3, stride=stride, at_once=scales != (1.0, 1.0), pool_scales=scales, **TINY).eval()
    draw_scores_(network)
    for score, scale in zip(network.scores[1:], scales, strict=False):
        nn.init.normal_(score.weight, std=1 / scale)  # to be seen behind the scales
    image = torch.rand(1, 3, 45, 70)
    with torch.no_grad():
        expected = published(image, network, stride, scales)[..., offset : offset + 45, offset : offset + 70]
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)


def test_crop_offsets_follow_from_where_pixels_of_each_map_lie_in_the_image() -> None:
    def conv(position: tuple[float, float], kernel: int, stride: int, pad: int) -> tuple[float, float]:
        """Step and first centre, in image pixels, of a convolution's or pooling's output, from those of its input."""
        step, first = position
        return step * stride, first + step * ((kernel - 1) / 2 - pad)

    def deconv(position: tuple[float, float], stride: int) -> tuple[float, float]:
        step, first = position
        return step / stride, first - step / stride * (2 * stride - 1) / 2

    image = (1.0, 0.0)
    x, pools = conv(image, 3, 1, 100), []
    for _ in range(5):
        x = conv(x, 2, 2, 0)
        pools.append(x)
    fc6 = conv(x, 7, 1, 0)
    fused, found = fc6, [(deconv(fc6, 32), image)]
    for pool, stride in ((pools[3], 16), (pools[2], 8)):
        up = deconv(fused, 2)
        found += [(pool, up), (deconv(up, stride), image)]
        fused = up
    assert all(of[0] == to[0] for of, to in found)  # both have one step
    offsets = [(to[1] - of[1]) / of[0] for of, to in found]
    assert offsets == [IMAGE_OFFSETS[32], POOL_OFFSETS[0], IMAGE_OFFSETS[16], POOL_OFFSETS[1], IMAGE_OFFSETS[8]]


def test_fully_connected_layers_as_convolutions_give_the_same_at_every_window() -> None:
    # A small VGG without padding: 2 x 2 convolutions and 2 poolings take 26 pixels to 2, and step by 4.
    features = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
    )
    first, second, last = nn.Linear(6 * 3 * 3, 8), nn.Linear(8, 8), nn.Linear(8, 5)
    classifier = nn.Sequential(features, nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    convs = (nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1))
    for conv, linear in zip(convs, (first, second, last), strict=True):
        convolutionalise_(conv, linear.weight, linear.bias)
    network = nn.Sequential(features, convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    image, window, step = torch.rand(1, 3, 44, 36), 24, 4
    maps = network(image)
    assert maps.shape == (1, 5, 6, 4)
    for row in range(6):
        for column in range(4):
            crop = image[..., row * step : row * step + window, column * step : column * step + window]
            torch.testing.assert_close(maps[..., row, column], classifier(crop))


def test_a_fully_connected_layer_of_another_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(8, 54\) does not fit the convolution \(8, 6, 5, 5\)"):
        convolutionalise_(nn.Conv2d(6, 8, 5), torch.rand(8, 54), torch.rand(8))


@pytest.mark.parametrize(
    ("names", "dims"),
    [(("classifier.0", "classifier.3", "classifier.6"), 1), (("pre_logits.fc1", "pre_logits.fc2", "head.fc"), 3)],
    ids=["torchvision", "timm"],
)
def test_a_file_of_a_classifier_gives_fc6_and_fc7_too(names: tuple[str, str, str], dims: int, tmp_path: Path) -> None:
    donor = FCN(3, **TINY)
    state = donor.encoder.state_dict() | {f"{names[2]}.weight": torch.rand(10, 8), f"{names[2]}.bias": torch.rand(10)}
    for name, conv in zip(names[:2], (donor.fc6, donor.fc7), strict=True):
        weight = conv.weight.flatten(1) if dims == 1 else conv.weight  # a linear layer, or a convolution
        state |= {f"{name}.weight": weight, f"{name}.bias": torch.rand(8)}
    torch.save(state, tmp_path / "vgg16.pth")
    network = FCN(3, weights=str(tmp_path / "vgg16.pth"), **TINY)
    for name, conv, source in zip(names[:2], (network.fc6, network.fc7), (donor.fc6, donor.fc7), strict=True):
        torch.testing.assert_close(conv.weight, source.weight)
        torch.testing.assert_close(conv.bias, nn.Parameter(state[f"{name}.bias"]))
    torch.testing.assert_close(network.encoder.state_dict(), donor.encoder.state_dict())
    with pytest.raises(ValueError, match="VGG16's own need fc_width=4096, got "):
        FCN(3, weights=str(tmp_path / "vgg16.pth"), encoder_width=1 / 16, fc_width=16)


@pytest.mark.parametrize(("encoder", "width"), [("resnet18", 0.125), ("smp-resnet18", 1.0)])
def test_another_encoder_is_scored_at_its_own_strides(encoder: str, width: float) -> None:
    network = FCN(3, encoder=encoder, encoder_width=width).eval()
    draw_scores_(network)
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        maps = network.encoder(image)
        x = network.scores[0](maps[5])
        for score, map_ in zip(network.scores[1:], (maps[4], maps[3]), strict=True):
            x = score(map_) + F.conv_transpose2d(x, bilinear_kernel(3, 2), stride=2, padding=1)
        inside = F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(image)[..., 4:-4, 4:-4], inside[..., 4:-4, 4:-4])
        assert network(torch.rand(2, 3, 33, 47)).shape == (2, 3, 33, 47)


def test_the_recipe_is_that_of_the_solver_files() -> None:
    module = FCNModule(3, 255, **TINY)
    (weights, biases) = sorted(module.parameter_groups(), key=lambda group: group["lr"])
    assert (weights["lr"], weights["weight_decay"]) == (1e-10, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-10, 0)
    assert sum(p.numel() for g in (weights, biases) for p in g["params"]) == parameters(module, trained=True)
    staged = {stride: FCNModule(3, 255, stride=stride, at_once=False, **TINY) for stride in (32, 16, 8)}
    assert [module.hparams["lr"] for module in staged.values()] == [1e-10, 1e-12, 1e-14]


def learned(module: FCNModule, size: tuple[int, int]) -> list[float]:
    """What one step by the recipe of `module` changes in the score of each stream, coarsest first: root mean square."""
    height, width = size
    images = torch.rand(1, module.mean.shape[0], height, width)
    masks = torch.arange(module.num_classes).repeat_interleave(-(-width // module.num_classes))[:width]
    h = module.hparams
    step = OPTIMIZERS[h["optimizer"]](module.parameter_groups(), h["lr"], h["momentum"], h["weight_decay"])
    module.eval()  # without dropout
    module.loss(images, masks.expand(1, height, width)).backward()
    step.step()
    network = module.network
    with torch.no_grad():  # scores start at zero
        maps = network._maps(module.normalise(images))
        scaled = [maps[0], *(scale * map_ for scale, map_ in zip(network.scales, maps[1:], strict=False))]
        changes = [F.conv2d(map_, score.weight) for map_, score in zip(scaled, network.scores, strict=True)]
    return [float(change.square().mean().sqrt()) for change in changes]


SMALL: dict[str, Any] = {"encoder_width": 0.125, "fc_width": 64}  # wide enough that no stream is dead by chance


def assert_every_stream_learns(changes: list[float]) -> None:
    assert all(change > 1e-2 * changes[0] for change in changes) and changes[0] > 0


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_stream_learns_by_the_default_recipe(stride: int, at_once: bool, in_channels: int) -> None:
    module = FCNModule(3, 255, stride=stride, at_once=at_once, in_channels=in_channels, **SMALL)
    changes = learned(module, (96, 96))
    assert len(changes) == 1 + STRIDES.index(stride)
    assert_every_stream_learns(changes)


def test_a_scale_slows_its_stream_by_its_square() -> None:
    plain, scaled = (FCNModule(3, 255, pool_scales=scales, **SMALL) for scales in ((1.0, 1.0), (0.01, 0.0001)))
    scaled.network.load_state_dict(plain.network.state_dict() | {"scales": scaled.network.scales})
    changes = []
    for module in (plain, scaled):
        torch.manual_seed(0)
        changes.append(learned(module, (96, 96)))
    ratios = [after / before for before, after in zip(*changes, strict=True)]
    assert ratios == pytest.approx([1, 1e-4, 1e-8], rel=1e-3)


@pytest.mark.parametrize("data", ["brain", "camvid"])
@pytest.mark.parametrize("variant", STUDY.variants)
def test_every_stream_learns_in_the_full_size_study(data: str, variant: str, request: pytest.FixtureRequest) -> None:
    arguments = {"root": str(request.getfixturevalue("camvid_root"))} if data == "camvid" else {}
    run = STUDY.runs(data, full_size=True, **arguments)[variant]
    crop = run.data["crop"]
    module = FCNModule(4, 255, **{**run.hparams, "class_weights": (0.5, 3.0, 1.0, 1.0), **SMALL})
    changes = learned(module, (crop, crop) if isinstance(crop, int) else crop)
    assert_every_stream_learns(changes)
    assert min(changes) > 1e-4  # logits, in the first of thousands of steps that momentum makes 100 times as long


def test_the_full_size_study_takes_the_published_steps_whatever_the_crop() -> None:
    run = STUDY.runs("brain", full_size=True)["fcn-8s"].but(class_weights=None)
    steps = []
    for hparams in (run.hparams, {}):  # on an image as large as those of PASCAL VOC they are the authors'
        torch.manual_seed(0)
        module = FCNModule(3, 255, **{**hparams, "encoder_width": 1 / 32, "fc_width": 4})
        steps.append((learned(module, (500, 500)), module.hparams["lr"] * module.hparams["weight_decay"]))
    assert steps[0] == (pytest.approx(steps[1][0], rel=1e-3), pytest.approx(steps[1][1]))


def test_corrections_name_what_learned_from_fc7_alone() -> None:
    default = defaults(FCNModule)
    for changed, named in (
        ({}, True),
        ({"stride": 16}, True),
        ({"stride": 32}, False),
        ({"at_once": False}, False),
        ({"encoder": "resnet50"}, False),
        ({"pool_scales": (0.01, 0.0001)}, False),
    ):
        assert ("fcn-pool-scales" in FCNModule.corrections(default | changed)) == named, changed
    for module in (CRFasRNNModule, PointRendModule):
        for network, options, named in (
            ("fcn", None, True),
            ("fcn", {"stride": 32}, False),
            ("fcn", {"encoder": "resnet50"}, False),
            ("segnet", None, False),
        ):
            hparams = defaults(module) | {"network": network, "network_options": options}
            assert ("fcn-pool-scales" in module.corrections(hparams)) == named, (module, network, options)


@pytest.mark.parametrize("at_once", [True, False])
def test_weights_stored_without_scales_predict_what_they_learned(at_once: bool) -> None:
    before = FCN(3, at_once=at_once, pool_scales=(0.01, 0.0001) if at_once else (1.0, 1.0), **TINY).eval()
    draw_scores_(before)
    state = before.state_dict()
    del state["scales"]
    now = FCN(3, at_once=at_once, **TINY).eval()
    now.load_state_dict(state)
    image = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(now(image), before(image))
    assert now.scales.tolist() == [1.0, 1.0]
    again = FCN(3, at_once=at_once, **TINY).eval()
    again.load_state_dict(now.state_dict())
    assert torch.equal(again(image), now(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 4}, "stride must be one of 32, 16, 8, got 4"),
        ({"upsampling": "fixed"}, "upsampling must be one of frozen, inner, learned, got 'fixed'"),
        ({"fc_width": 0}, "fc_width must be at least 1, got 0"),
        ({"pool_scales": (1.0, 0.0)}, r"pool_scales must be two finite numbers of more than 0, got \(1.0, 0.0\)"),
        ({"pool_scales": (0.5,)}, r"pool_scales must be two finite numbers of more than 0, got \(0.5,\)"),
        ({"pool_scales": (0.5, 0.5), "at_once": False}, "pool_scales are of encoder='vgg16' with at_once=True"),
        ({"pool_scales": (0.5, 0.5), "encoder": "resnet50"}, "pool_scales are of encoder='vgg16' with at_once=True"),
    ],
)
def test_errors_name_the_argument_and_the_choices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(**arguments)


def test_one_batch_is_overfitted() -> None:
    module = FCNModule(3, 255, encoder="resnet18", encoder_width=0.125, loss="ce")
    images = torch.rand(2, 3, 64, 64)
    masks = torch.randint(3, (2, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    optimizer = torch.optim.Adam(module.parameters(), 2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        module.loss(images, masks).backward()
        optimizer.step()
    assert (module(images).argmax(1) == masks).float().mean() > 0.9
