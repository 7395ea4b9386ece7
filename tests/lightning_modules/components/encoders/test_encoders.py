import math
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.vgg import cfgs, make_layers

from lightning_modules.components.blocks import he_
from lightning_modules.components.encoders import NATIVE, Classifier, Encoder, build_encoder
from lightning_modules.components.encoders.mobilenet import LAYERS
from lightning_modules.components.encoders.xception import Block
from lightning_modules.components.upsampling import pool

FOREIGN = ("smp-resnet18", "mobilenet_v2", "tu-tf_efficientnet_lite0")


def small(name: str, in_channels: int = 3, **arguments: object) -> Encoder:
    width = 1 / 16 if name in NATIVE else 1.0
    return build_encoder(name, in_channels, width=width, **arguments)  # type: ignore[arg-type]


def on_meta(name: str, **arguments: object) -> Encoder:
    with torch.device("meta"):
        return build_encoder(name, **arguments)  # type: ignore[arg-type]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scramble(module: nn.Module) -> nn.Module:
    """Gives the batch norms statistics and weights of their own, so that none can be left out unseen."""
    torch.manual_seed(0)
    he_(module)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.running_var):
                values.uniform_(0.5, 1.5)
            for values in (norm.bias.data, norm.running_mean):
                values.normal_(std=0.2)
    return module.eval()


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


# --- the contract


@pytest.mark.parametrize(("depth", "output_stride", "in_channels"), [(5, 32, 3), (5, 16, 1), (4, 8, 4), (2, 32, 3)])
@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_contract(name: str, depth: int, output_stride: int, in_channels: int) -> None:
    encoder = small(name, in_channels, depth=depth, output_stride=output_stride)
    maps = encoder(torch.rand(2, in_channels, 33, 47))
    strides = [min(2**index, output_stride) for index in range(depth + 1)]
    assert [tuple(m.shape[2:]) for m in maps] == [(math.ceil(33 / s), math.ceil(47 / s)) for s in strides]
    assert tuple(m.shape[1] for m in maps) == encoder.out_channels
    assert (encoder.depth, encoder.output_stride) == (depth, strides[-1])
    maps[-1].square().sum().backward()  # all of it lies on the way to the last map
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


FAMILIES = (
    *("inceptionv4", "se_resnet50", "tu-skresnet18", "tu-seresnet18", "tu-gernet_s", "tu-convnext_atto"),
    *("tu-starnet_s1", "tu-hrnet_w18_small", "tu-swin_tiny_patch4_window7_224", "tu-swinv2_cr_tiny_224"),
)


@pytest.mark.parametrize(
    ("name", "depth"),
    [*((name, 5) for name in FAMILIES), ("inceptionv4", 3), ("tu-starnet_s1", 3), ("tu-hrnet_w18_small", 3)],
)
def test_families_keep_the_contract(name: str, depth: int) -> None:
    encoder = on_meta(name, depth=depth)
    for module in (encoder.train(), encoder.eval()):
        maps = module(torch.rand(2, 3, 33, 70, device="meta"))
        assert [tuple(m.shape[2:]) for m in maps] == [
            (math.ceil(33 / 2**i), math.ceil(70 / 2**i)) for i in range(depth + 1)
        ]
        assert tuple(m.shape[1] for m in maps) == encoder.out_channels
    torch.autograd.backward([m.sum() for m in maps if m.requires_grad])
    trained = {key for key, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert trained == {key for key, p in encoder.named_parameters() if p.grad is not None}


def test_what_an_encoder_cannot_run_without_is_frozen() -> None:
    encoder = build_encoder("tu-hrnet_w18_small", depth=3)
    trained = {key.split(".")[2]: p.requires_grad for key, p in encoder.named_parameters()}
    assert trained["layer1"]
    assert not trained["stage4"]
    assert [m.shape[-1] for m in encoder.eval()(torch.rand(1, 3, 64, 64))] == [64, 32, 16, 8]


@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_maps_keep_their_values_while_the_next_ones_are_computed(name: str) -> None:
    encoder = small(name).eval()
    x = torch.randn(1, 3, 64, 64)
    before, shallow = x.clone(), small(name, depth=2).eval()
    own = encoder.state_dict()
    shallow.load_state_dict({key: own[key] for key in shallow.state_dict()})
    for deep, alone in zip(encoder(x), shallow(x), strict=False):
        torch.testing.assert_close(deep, alone)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("vgg16", 0),  # pool5 has no parameters, and what is pooled is a map of depth 4
        ("resnet50", 14_964_736),  # layer4 of torchvision's resnet50
        ("mobilenet_v2", None),
        ("tu-tf_efficientnet_lite0", None),
    ],
)
def test_stages_beyond_the_depth_are_not_built(name: str, rest: int | None) -> None:
    fewer = parameters(on_meta(name)) - parameters(on_meta(name, depth=4))
    assert fewer == rest if rest is not None else fewer > 0


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg16", 14_714_688),
        ("resnet18", 11_689_512 - 513_000),  # torchvision's less a classifier of 512 x 1000 + 1000
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        ("xception65", 37_867_312),
        ("resnet50-deep", 23_631_808),
        ("mobilenet_v1", 4_231_976 - 1_025_000),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert parameters(on_meta(name)) == count
    assert parameters(on_meta(name, output_stride=8)) == count


def test_every_encoder_of_the_table_says_which_weights_fit_it_or_none() -> None:
    assert {name for name in NATIVE if on_meta(name).pretrained is None} == {"mobilenet_v1"}


def test_the_deep_stem_is_timms(tmp_path: Path) -> None:
    reference, file = scramble(timm.create_model("resnet50s", num_classes=0)), tmp_path / "timm.safetensors"
    save_file(reference.state_dict(), file)
    x = torch.randn(1, 3, 65, 64)
    assert_equal(build_encoder("resnet50-deep", weights=str(file)).eval()(x)[5], reference.forward_features(x))


# --- VGG


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg_equals_torchvision(norm: str) -> None:
    reference = scramble(make_layers(cfgs["D"], batch_norm=norm == "batch"))
    encoder = build_encoder("vgg16", norm=norm).eval()
    encoder.features.load_state_dict(reference.state_dict())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(x)[-1], reference(x))
    before = [index for index, layer in enumerate(reference) if isinstance(layer, nn.MaxPool2d)]
    for m, index in zip(encoder(x), before, strict=False):
        torch.testing.assert_close(m, reference[:index](x))


def test_vgg_says_where_the_maxima_of_its_pooling_were() -> None:
    encoder, images, indices = small("vgg16"), torch.rand(2, 3, 33, 70), list[Tensor]()
    maps = encoder(images, indices)
    assert all(torch.equal(ours, alone) for ours, alone in zip(maps, encoder(images), strict=True))
    for map_, where in zip(maps[:-1], indices, strict=True):
        assert torch.equal(where, pool(map_)[1])


def test_vgg_at_output_stride_8_is_the_encoder_of_deeplab() -> None:
    encoder = on_meta("vgg16", output_stride=8)
    pools = [layer for layer in encoder.features if isinstance(layer, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride, p.padding) for p in pools] == [(3, s, 1) for s in (2, 2, 2, 1, 1)]
    rates = [layer.dilation[0] for layer in encoder.features if isinstance(layer, nn.Conv2d)]
    assert rates == [1] * 10 + [2] * 3


# --- ResNet


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_resnet_logits_equal_torchvision(name: str) -> None:
    reference = scramble(torchvision.models.get_model(name, num_classes=10))
    classifier = Classifier(build_encoder(name), 10).eval()
    state = reference.state_dict()
    classifier.fc.load_state_dict({key: state.pop(f"fc.{key}") for key in ("weight", "bias")})
    classifier.encoder.load_state_dict(state)
    x = torch.randn(2, 3, 65, 64)
    assert_equal(classifier(x), reference(x))


@pytest.mark.parametrize(("output_stride", "replace"), [(16, (False, False, True)), (8, (False, True, True))])
def test_atrous_resnet_equals_torchvision(output_stride: int, replace: tuple[bool, bool, bool]) -> None:
    reference = scramble(torchvision.models.resnet50(replace_stride_with_dilation=list(replace), num_classes=1))
    encoder = build_encoder("resnet50", output_stride=output_stride, rates="torchvision").eval()
    encoder.load_state_dict({key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")})
    x = torch.randn(1, 3, 65, 64)
    names = ["relu", *(f"layer{index}" for index in range(1, 5))]
    expected = IntermediateLayerGetter(reference, {name: name for name in names})(x)
    for m, name in zip(encoder(x)[1:], names, strict=True):
        assert_equal(m, expected[name])


def rates(encoder: Encoder, stage: str) -> list[int]:
    return [block.conv2.dilation[0] for block in encoder.get_submodule(stage)]


def test_paper_rates_are_those_of_the_whole_stage_times_the_multi_grid() -> None:
    encoder = on_meta("resnet50", output_stride=8, multi_grid=(1, 2, 4))
    assert (rates(encoder, "layer2"), rates(encoder, "layer3"), rates(encoder, "layer4")) == (
        [1] * 4,
        [2] * 6,
        [4, 8, 16],  # DeepLab v3, Sec. 3.2.1: "rates = 2 * (1, 2, 4) = (2, 4, 8)" at 16, twice that at 8
    )
    assert rates(on_meta("resnet50", output_stride=16, multi_grid=(1, 2, 4)), "layer4") == [2, 4, 8]
    assert rates(on_meta("resnet50", output_stride=8, rates="torchvision"), "layer4") == [2, 4, 4]
    basic = on_meta("resnet18", output_stride=16).layer4[0]
    assert (basic.conv1.dilation, basic.conv2.dilation) == ((2, 2), (2, 2))


# --- atrous convolution computes what the strided network does, at more positions (DeepLab v1, Sec. 3.1)


@pytest.mark.parametrize("name", ["resnet50", "xception65", "xception71", "mobilenet_v1"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_maps_are_the_strided_ones_and_more(name: str, output_stride: int) -> None:
    options = {"rates": "torchvision"} if name == "resnet50" else {}
    strided = scramble(small(name, **options))
    atrous = small(name, output_stride=output_stride, **options).eval()
    atrous.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 69)
    for index, (sparse, dense) in enumerate(zip(strided(x), atrous(x), strict=True)):
        step = max(2**index // output_stride, 1)
        assert_equal(dense[..., ::step, ::step], sparse)


def test_atrous_conv5_of_vgg_is_the_strided_one_and_more() -> None:
    sparse, dense = small("vgg16", output_stride=16), small("vgg16", output_stride=8)
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(1, 3, 96, 69)
    torch.testing.assert_close(dense(x)[4][..., ::2, ::2], sparse(x)[4])


# --- Xception


def test_xception_equals_timm(tmp_path: Path) -> None:
    reference = scramble(timm.create_model("xception65", num_classes=0, output_stride=16))
    save_file(reference.state_dict(), tmp_path / "timm.safetensors")
    file = str(tmp_path / "timm.safetensors")
    encoder = build_encoder("xception65", output_stride=16, weights=file).eval()
    x, given = torch.randn(1, 3, 65, 64), []
    for index in (0, 1, 2, 19):  # the blocks with a stride
        reference.blocks[index].register_forward_pre_hook(lambda module, args: given.append(args[0].clone()))
    last = reference.forward_features(x)
    for ours, theirs in zip(encoder(x), [x, *given, last], strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize(("name", "channels"), [("xception65", 128), ("xception71", 256)])
def test_low_level_features_of_xception_are_at_stride_4(name: str, channels: int) -> None:
    encoder = on_meta(name, output_stride=16)
    assert encoder.out_channels[2] == channels
    assert encoder(torch.empty(1, 3, 64, 64, device="meta"))[2].shape == (1, channels, 16, 16)


@pytest.mark.parametrize("project", [False, True])
def test_the_skip_of_a_xception_block_sees_the_raw_input(project: bool) -> None:
    block = Block(4, (4, 4, 4), project=project).eval()
    x = -1 - torch.rand(1, 4, 9, 9)
    before, out = x.clone(), block(x)
    assert torch.equal(x, before)  # no ReLU in place
    moved = block(x - 1)
    # Below zero the branch sees zeros whatever x is: the change of the output is that of the skip alone.
    torch.testing.assert_close(moved - out, block.shortcut(x - 1) - block.shortcut(x))
    assert (moved - out).abs().min() > 0.01


# --- MobileNet


def multiply_adds(module: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def test_mobilenet_has_the_published_parameters_and_multiply_adds() -> None:
    with torch.device("meta"):
        classifier = Classifier(build_encoder("mobilenet_v1"), 1000)
    assert parameters(classifier) == 4_231_976
    assert multiply_adds(classifier, 224) == 568_740_352


@pytest.mark.parametrize(("alpha", "size"), [(1.0, 128), (0.75, 224), (0.5, 192), (0.25, 160)])
def test_cost_of_mobilenet_with_its_two_multipliers(alpha: float, size: int) -> None:
    below, side = round(32 * alpha), size // 2
    expected = 9 * 3 * below * side**2
    for channels, stride in LAYERS:
        side //= stride
        # Eq. 7: D_K^2 * alpha M * (rho D_F)^2 + alpha M * alpha N * (rho D_F)^2
        expected += (9 * below + below * round(channels * alpha)) * side**2
        below = round(channels * alpha)
    assert multiply_adds(on_meta("mobilenet_v1", width=alpha), size) == expected


# --- errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet50", {"depth": 6}, "depth must be one of 1, 2, 3, 4, 5, got 6"),
        ("resnet50", {"output_stride": 4}, "output_stride must be one of 8, 16, 32, got 4"),
        ("resnet50", {"width": 0.0}, "width must be more than 0"),
        ("resnet50", {"norm": "batch"}, "takes multi_grid, rates, got norm"),
        ("mobilenet_v1", {"multi_grid": (1, 1, 1)}, "takes no options of its own, got multi_grid"),
        *(
            ("resnet50", {"multi_grid": grid}, rf"at least 1, for each of the 3 .*such as \[1, 2, 4\], got {got}")
            for grid, got in (
                *(
                    ((1, 2), r"\(1, 2\)"),
                    ((0, 1, 1), r"\(0, 1, 1\)"),
                    ((-1, 1, 1), r"\(-1"),
                    ((1, 2.0, 4), r"\(1, 2\.0"),
                ),
                *(("124", "'124'"), (2, "2")),
            )
        ),
        ("resnet18", {"multi_grid": (0, 1)}, r"such as \[1, 2\], got \(0, 1\)"),
        ("resnet18", {"rates": "torchvision"}, "is of resnet50 and resnet101"),
        ("resnet50", {"rates": "caffe"}, "rates must be one of paper, torchvision, got 'caffe'"),
        ("vgg16", {"norm": "layer"}, "norm must be one of none, batch, got 'layer'"),
        ("smp-resnet18", {"width": 0.5}, "width is of the native encoders vgg16, "),
        ("resnt34", {}, "got 'resnt34'; the nearest are resnet34"),
        ("tu-resnt34", {}, "encoder='tu-resnt34': timm has no 'resnt34'; the nearest are resnet34"),
        ("tu-resnet18.nope", {}, r"Invalid pretrained tag \(nope\)"),
        ("smp-vgg11", {"output_stride": 16}, "do not support dilated mode.* or the native vgg16, resnet50, xception65"),
        ("tu-densenet121", {"output_stride": 8}, "unexpected keyword.* or the native vgg16, resnet50, xception65"),
        ("tu-maxvit_pico_rw_256", {"depth": 3}, r"for images of 256 x 256: .*divisible by window .*'tu-convnext_atto'"),
        ("tu-efficientformer_l1", {}, "for images of 224 x 224: .*'tu-convnext_atto'"),
        ("tu-coatnet_pico_rw_224", {}, "for images of 224 x 224: .*'tu-convnext_atto'"),
        ("tu-levit_128s", {}, "Unsupported model downsampling pattern.*'tu-convnext_atto'"),
        ("tu-xcit_nano_12_p8_224", {}, "Unsupported model downsampling pattern.*'tu-convnext_atto'"),
        ("tu-inception_v4", {}, r"its maps of an image of \(96, 160\) have the sizes \[\(96, 160\), \(45, 77\)"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(name, **arguments)
