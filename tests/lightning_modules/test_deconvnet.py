import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.runs.run import defaults
from lightning_modules.deconvnet import DeconvNet, DeconvNetModule


def test_deconvnet_has_251805653_parameters() -> None:
    with torch.device("meta"):
        network = DeconvNet(21)
    # conv: k * k * in * out + out; norm: 2 * out
    encoder = 14_714_688 + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)  # VGG16's convolutions
    fc6 = 7 * 7 * 512 * 4096 + 4096 + 2 * 4096
    fc7 = 4096 * 4096 + 4096 + 2 * 4096
    fc6_deconv = 7 * 7 * 4096 * 512 + 512 + 2 * 512
    layers = [(512, 512)] * 5 + [(512, 256)] + [(256, 256)] * 2 + [(256, 128), (128, 128), (128, 64)] + [(64, 64)] * 2
    decoder = sum(9 * i * o + o + 2 * o for i, o in layers)
    score = 64 * 21 + 21
    assert encoder + fc6 + fc7 + fc6_deconv + decoder + score == 251_805_653  # "approximately 252M", Sec. 6.1
    assert sum(p.numel() for p in network.parameters()) == 251_805_653


def test_224_pixels_make_one_window_of_fc6() -> None:
    with torch.device("meta"):
        network = DeconvNet(21).eval()
    shapes = {}
    for name in ("fc6", "fc6_deconv"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 21, 224, 224)
    assert shapes == {"fc6": (1, 4096, 1, 1), "fc6_deconv": (1, 512, 7, 7)}


def plain_deconvnet(x: Tensor, network: DeconvNet) -> Tensor:
    """DeconvNet_inference_deploy.prototxt spelled out for 224 x 224, with the layers of `network` in their order."""
    layers = iter([m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)])
    norms = iter([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])

    def layer(x: Tensor) -> Tensor:
        conv, norm = next(layers), next(norms)
        apply = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv_transpose2d
        x = apply(x, conv.weight, conv.bias, padding=1 if conv.kernel_size == (3, 3) else 0)
        return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    masks = []
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = layer(x)
        x, mask = F.max_pool2d(x, 2, return_indices=True)
        masks.append(mask)
    for _ in ("fc6", "fc7", "fc6-deconv"):
        x = layer(x)
    for count in (3, 3, 3, 2, 2):
        x = F.max_unpool2d(x, masks.pop(), 2)
        for _ in range(count):
            x = layer(x)
    score = next(layers)
    return F.conv2d(x, score.weight, score.bias)


def test_equals_the_published_network_spelled_out() -> None:
    network = DeconvNet(3, width=2, fc_width=4).eval()
    for module in network.modules():  # Gaussians of 0.01 leave nothing of a map 16 layers on
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain_deconvnet(image, network)
        assert expected.std() > 1e-3
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (225, 256)])
def test_any_size_and_a_batch_of_one_train(size: tuple[int, int]) -> None:
    module = DeconvNetModule(3, 255, width=4, fc_width=8)
    assert module(torch.rand(1, 3, *size)).shape == (1, 3, *size)
    module.loss(torch.rand(1, 3, *size), torch.randint(3, (1, *size))).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_fc6_reaches_the_whole_of_a_small_image() -> None:
    network = DeconvNet(2, width=4, fc_width=8).eval()
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
    image = torch.rand(1, 3, 160, 160, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[..., 0, 0].sum(), image)
    assert gradient[..., 128:, 128:].any()  # further than VGG16's convolutions and their mirror see from a corner


def test_a_correction_names_the_folder_whose_normalisation_was_ignored() -> None:
    default = defaults(DeconvNetModule)
    assert DeconvNetModule.corrections(default) == {}
    assert DeconvNetModule.corrections(default | {"weights": "imagenet"}) == {}
    assert set(DeconvNetModule.corrections(default | {"weights": "dir/vgg16_bn"})) == {"encoder-normalisation"}


def test_the_recipe_is_that_of_the_solver_files() -> None:
    module = DeconvNetModule(3, 255, width=4, fc_width=8)
    weights, biases = sorted(module.parameter_groups(), key=lambda group: group["lr"])
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0)


@pytest.mark.parametrize(("name", "value"), [("width", 0), ("width", -64), ("fc_width", 0)])
def test_widths_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got {value}"):
        DeconvNet(2, **{name: value})
