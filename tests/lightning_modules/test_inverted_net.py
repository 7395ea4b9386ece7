import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.folder import FolderDataModule
from lightning_modules.inverted_net import VARIANTS, DelayedMaxPool, InvertedNet, InvertedNetModule

DATA = Path(os.environ.get("SEGLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))


def network(*args: int, **kwargs: object) -> InvertedNet:
    """A tiny one, unless it says otherwise."""
    return InvertedNet(*args, **{"width": 8, "depth": 2, **kwargs})  # type: ignore[arg-type]


# (in, out) of every 3x3 convolution for one channel; each comes with a bias.
INVERTED = [
    *[(1, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16)],
    *[(48, 32), (32, 32), (96, 64), (64, 64), (192, 128), (128, 128), (384, 256), (256, 256)],
]
ALL_DROPOUT = [
    *[(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)],
    *[(1024, 1024), (1536, 512), (512, 512), (768, 256), (256, 256), (384, 128), (128, 128), (192, 64), (64, 64)],
]
STRIDED = [(64, 64), (128, 128), (256, 256), (512, 512)]  # in the place of the poolings


@pytest.mark.parametrize(
    ("variant", "convolutions", "width", "total"),
    [
        ("inverted", INVERTED, 256, 3_141_028),
        ("all-dropout", ALL_DROPOUT, 64, 31_377_988),
        ("all-conv", ALL_DROPOUT + STRIDED, 64, 34_512_388),
    ],
)
def test_its_own_parameter_count(variant: str, convolutions: list[tuple[int, int]], width: int, total: int) -> None:
    assert sum(9 * i * o + o for i, o in convolutions) + 4 * width + 4 == total
    with torch.device("meta"):
        full = InvertedNet(4, 1, variant=variant)
    assert sum(p.numel() for p in full.parameters()) == total
    layers = [m for m in full.modules() if isinstance(m, nn.Conv2d)]
    assert sorted((m.in_channels, m.out_channels) for m in layers) == sorted([*convolutions, (width, 4)])


def plain(x: Tensor, network: InvertedNet, variant: str) -> Tensor:
    """The three networks spelled out for depth 2, with the weights of `network` and without dropout."""
    w = dict(network.named_parameters())

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.elu(F.conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=stride, padding=1))

    def double(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return conv(conv(x, f"{name}.0", stride), f"{name}.1")

    def encode(x: Tensor, level: int) -> Tensor:
        if variant == "all-dropout":
            return double(F.max_pool2d(x, 2), f"encoder.{level}")
        if variant == "all-conv":
            return double(conv(x, f"down.{level - 1}", stride=2), f"encoder.{level}")
        windows = F.pad(x, (0, 1, 0, 1), value=-torch.inf).unfold(2, 2, 1).unfold(3, 2, 1)
        return double(windows.amax((-1, -2)), f"encoder.{level}", stride=2)

    first = double(x, "encoder.0")
    second = encode(first, 1)
    x = encode(second, 2)
    for level, skip in ((0, second), (1, first)):
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        x = double(torch.cat([skip, x], 1), f"decoder.{level}")
    return F.conv2d(x, w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_description_spelled_out(variant: str) -> None:
    net = network(3, 1, variant=variant).eval()
    images = torch.rand(2, 1, 24, 32)
    torch.testing.assert_close(net(images), plain(images, net, variant))


def test_delayed_subsampling_keeps_the_grid_of_pooling() -> None:
    maps = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(DelayedMaxPool()(maps)[..., ::2, ::2], F.max_pool2d(maps, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_follows_every_convolution_but_the_last(variant: str) -> None:
    net = network(3, 1, variant=variant, dropout=0.25)
    drops = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert len(drops) == sum(isinstance(m, nn.Conv2d) for m in net.modules()) - 1
    assert {m.p for m in drops} == {0.25}
    image = torch.rand(1, 1, 16, 16)
    assert not net(image).equal(net(image))
    net.eval()
    assert net(image).equal(net(image))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (21, 30), (33, 47)])
def test_keeps_any_size(variant: str, height: int, width: int) -> None:
    assert network(3, 2, variant=variant)(torch.rand(2, 2, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "inverse"}, "variant must be one of all-dropout, all-conv, inverted, got 'inverse'"),
        ({"width": 6}, "multiple of 4, got 6"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": -4}, "width must be at least 1, got -4"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_errors_name_the_argument_and_the_choices(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(2, 1, **arguments)


def test_weights_start_so_that_a_layer_keeps_the_mean_square() -> None:
    conv = network(4, 1, width=128, depth=1).encoder[0][1][0]
    mean_square = F.elu(torch.randn(10**6)).square().mean().item()
    assert conv.weight.std().item() == pytest.approx((mean_square * 9 * 128) ** -0.5, rel=0.02)


def steps(module: InvertedNetModule, images: Tensor, masks: Tensor, number: int) -> list[float]:
    optimizer, losses = torch.optim.Adam(module.parameters(), 3e-3), []
    for _ in range(number):
        optimizer.zero_grad()
        loss = module.loss(images, masks)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_batch_is_overfitted(variant: str) -> None:
    module = InvertedNetModule(3, 255, variant=variant, width=16, depth=2, dropout=0.0, class_weights=None)
    images, masks = torch.rand(2, 3, 16, 16), torch.randint(3, (2, 4, 4))
    masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    steps(module, images, masks, 60)
    assert (module.eval()(images).argmax(1) == masks).float().mean() > 0.9


def test_learns_from_real_chest_radiographs() -> None:
    if not (DATA / "chest_xray").is_dir():
        pytest.skip(f"no chest_xray in {DATA}; the folder of data sets is set by SEGLAB_DATA")
    datamodule = FolderDataModule(str(DATA / "chest_xray"), scale=0.0625, crop=32, flip=False, batch_size=8)
    batch = next(iter(datamodule.train_dataloader()))
    module = InvertedNetModule(datamodule.num_classes, 255, width=16, depth=2, class_weights=[0.5, 1, 1, 1])
    losses = steps(module, batch["image"], batch["mask"], 30)
    assert losses[-1] < 0.8 * losses[0]
