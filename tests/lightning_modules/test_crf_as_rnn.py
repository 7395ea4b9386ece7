from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_networks import TINY
from torch import Tensor

from datamodules.shapes import ShapesDataModule
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS
from lightning_modules.components.losses import LOSSES
from lightning_modules.crf_as_rnn import PUBLISHED, CRFasRNNModule
from lightning_modules.fcn import FCNModule
from lightning_modules.pspnet import PSPNetModule
from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import dense_crf
from lightning_modules.segnet import SegNetModule
from lightning_modules.unet import UNetModule

ZERO = {"w_appearance": 0.0, "w_smoothness": 0.0}


def tiny(network: str = "unet", **arguments: Any) -> CRFasRNNModule:
    given: dict[str, Any] = {"network": network, "network_options": TINY[network], **arguments}
    return CRFasRNNModule(3, 255, **given).eval()


def checkpoint(module: SegmentationModule, path: Path) -> str:
    """What `module` leaves on the disk after a step of training."""
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accelerator="cpu",
        default_root_dir=path.parent,
    )
    trainer.fit(module.train(), ShapesDataModule(length=2, batch_size=1))
    trainer.save_checkpoint(path)
    return str(path)


def grey_levels(*shape: int) -> Tensor:
    """Images as files hold them: k / 255 in float32."""
    return torch.randint(256, shape).float() / 255


def test_the_published_start_is_the_default() -> None:
    module = CRFasRNNModule(21, 255, network_options=TINY["fcn"])
    crf = module.network.crf
    assert (module.hparams["network"], module.hparams["crf"]) == ("fcn", "dense")
    assert crf.w_appearance.tolist() == [5] * 21 and crf.w_smoothness.tolist() == [3] * 21
    assert torch.equal(crf.compatibility, 1 - torch.eye(21))  # Potts
    assert module.loss_function is LOSSES["ce_sum"]
    groups = module.parameter_groups()
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert groups[0]["lr"] == 1e-13  # the logged one
    assert rates[id(module.network.network.fc6.bias)] == pytest.approx(2e-13)
    assert rates[id(crf.w_appearance)] == rates[id(crf.w_smoothness)] == pytest.approx(1e-9)
    assert rates[id(crf.compatibility)] == pytest.approx(1e-10)
    assert decays[id(crf.compatibility)] == 0 and decays[id(module.network.network.fc6.weight)] == 5e-4
    assert set(rates) == {id(p) for p in module.parameters() if p.requires_grad}


def test_five_iterations_in_training_and_ten_in_testing_on_the_images_themselves() -> None:
    images = grey_levels(2, 3, 24, 32)
    module = tiny()
    probabilities = module.network.network(module.normalise(images)).softmax(1)
    for training, iterations in ((True, 5), (False, 10)):
        expected = dense_crf(probabilities, 255 * images, **PUBLISHED, iterations=iterations)
        found = module.train(training)(images)
        torch.testing.assert_close(found.softmax(1), expected, atol=1e-4, rtol=1e-4)
        with torch.no_grad():  # where the fused engine may serve
            torch.testing.assert_close(module(images), found, atol=1e-3, rtol=1e-3)
    five, ten = (module.train(training)(images) for training in (True, False))
    assert (five - ten).abs().max() > 1e-3


def test_a_convolutional_crf_takes_its_place() -> None:
    images = grey_levels(2, 3, 24, 32)
    module = tiny(crf="conv", crf_options={"window": 5, "shape": "square", "theta_beta": 20.0})
    probabilities = module.network.network(module.normalise(images)).softmax(1)
    options = {**PUBLISHED, "window": 5, "shape": "square", "theta_beta": 20.0}
    torch.testing.assert_close(module(images).exp(), conv_crf(probabilities, 255 * images, **options))


@pytest.mark.parametrize("crf", ["dense", "conv"])
def test_trains_end_to_end(crf: str) -> None:
    """One batch is learned by heart, and a part of it by the CRF."""
    masks = torch.randint(3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colours = torch.rand(3, 3)
    images = (colours[masks].permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 32, 32)).clamp(0, 1)
    options = {"theta_alpha": 8.0, "theta_beta": 30.0, "w_appearance": 1.0, "w_smoothness": 1.0}
    module = tiny(crf=crf, crf_options=options, loss="ce").train()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module.loss(images, masks)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert (module(images).argmax(1) == masks).float().mean() > 0.95
    for name in ("w_appearance", "w_smoothness", "compatibility"):
        moved = (dict(module.named_parameters())[f"network.crf.{name}"] - start[f"network.crf.{name}"]).abs()
        assert (moved > 1e-3).all(), name


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_reaches_every_parameter_of_every_network(network: str) -> None:
    module = tiny(network, crf="conv", loss="ce").train()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    for _ in range(2):  # FCN's scores start at zero, so that nothing below them has a gradient in the first step
        optimizer.zero_grad()
        module.loss(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))).backward()
        optimizer.step()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("crf", ["dense", "conv"])
def test_the_crf_stays_in_float32_under_autocast(crf: str) -> None:
    images, module = grey_levels(1, 3, 24, 32), tiny(crf=crf)
    with torch.autocast("cpu", torch.bfloat16):
        low = module.network.network(module.normalise(images))
        refined = module(images)
    assert low.dtype == torch.bfloat16 and refined.dtype == torch.float32
    expected = module.network.crf(low.float().softmax(1), (255 * images).round())
    torch.testing.assert_close(refined.exp(), expected)


def test_dark_and_grey_images_are_images() -> None:
    dark = torch.rand(1, 3, 16, 16) / 255  # no level above 1 of 255
    assert tiny()(dark).isfinite().all()
    grey = CRFasRNNModule(2, 255, network="unet", network_options=TINY["unet"], in_channels=1).eval()
    assert grey(grey_levels(1, 1, 16, 16)).isfinite().all()
    others = CRFasRNNModule(2, 255, network="unet", network_options=TINY["unet"], in_channels=4, crf="none").eval()
    assert others(torch.rand(1, 4, 16, 16)).shape == (1, 2, 16, 16)


@pytest.mark.parametrize("crf", ["dense", "conv", "none"])
def test_starts_from_a_trained_network_and_is_it_without_a_crf(crf: str, tmp_path: Path) -> None:
    options = TINY["fcn"] | {"at_once": False, "stride": 16}
    trained = FCNModule(3, 255, loss="ce", lr=0.1, mean=(0.1, 0.2, 0.3), **options)
    path = checkpoint(trained, tmp_path / "fcn.ckpt")
    zero: Mapping[str, Any] | None = None if crf == "none" else ZERO
    arguments: dict[str, Any] = {"network_options": options, "crf": crf, "crf_options": zero}
    module = tiny("fcn", init_from=path, **arguments)
    images = grey_levels(2, 3, 40, 33)
    logits = trained.eval()(images)
    assert logits.std() > 0.01
    if crf == "none":
        assert torch.equal(module(images), logits)
    else:
        torch.testing.assert_close(module(images), logits.log_softmax(1), atol=1e-5, rtol=1e-5)
    assert module.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    coloured = tiny("fcn", init_from=path, mean=(0.5, 0.6, 0.7), **arguments)
    assert coloured.mean.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])  # said, so it stays

    own = checkpoint(module, tmp_path / "crf.ckpt")
    Path(path).unlink()  # a checkpoint holds what it started from
    loaded = CRFasRNNModule.load_from_checkpoint(own, weights_only=True).eval()
    torch.testing.assert_close(loaded(images), module.eval()(images))


def test_a_head_that_no_logits_come_from_is_left_behind(tmp_path: Path) -> None:
    trained = PSPNetModule(3, 255, aux_weight=0.4, **TINY["pspnet"])
    path = checkpoint(trained, tmp_path / "pspnet.ckpt")
    module = tiny("pspnet", init_from=path, crf="none", network_options=TINY["pspnet"] | {"dropout": 0.5})
    images = grey_levels(1, 3, 40, 33)
    assert torch.equal(module(images), trained.eval()(images))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = checkpoint(UNetModule(3, 255, **TINY["unet"]), tmp_path / "unet.ckpt")
    for arguments, message in (
        ({"network": "fcn"}, "holds UNetModule, and network='fcn' needs FCNModule"),
        ({"network_options": {"width": 8, "depth": 2}}, "trained with width=4, not width=8: give the same in network_"),
        (
            {"network_options": {**TINY["unet"], "upsample": "nearest"}},
            "upsample='transposed-2', not upsample='nearest'",
        ),
        ({"network_options": {**TINY["unet"], "decoder_widths": [4, 4]}}, r"None, not decoder_widths=\[4, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(**{"init_from": path, **arguments})
    with pytest.raises(ValueError, match="num_classes=3, not num_classes=4"):
        CRFasRNNModule(4, 255, network="unet", network_options=TINY["unet"], init_from=path)
    with pytest.raises(FileNotFoundError, match="not a file: give a checkpoint of UNetModule"):
        tiny(init_from=str(tmp_path / "none.ckpt"))
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"init_from=.*broken\.ckpt' is not a checkpoint"):
        tiny(init_from=str(tmp_path / "broken.ckpt"))
    basic = checkpoint(SegNetModule(3, 255, variant="basic", width=4, class_weights=None), tmp_path / "basic.ckpt")
    with pytest.raises(ValueError, match=r"holds another network: .*SegNet"):
        tiny("segnet", init_from=basic)
    stored = torch.load(path, weights_only=True)
    for change, message in (
        ({"segmentation": {}}, "it names no architecture"),
        ({"hyper_parameters": {}}, "was trained with num_classes=None"),
        ({"state_dict": {}}, "its state_dict is not tensors by name"),
        (
            {"state_dict": {n: w for n, w in stored["state_dict"].items() if n != "mean"}},
            "holds no mean for 3 channels",
        ),
    ):
        torch.save(stored | change, path)
        with pytest.raises(ValueError, match=message):
            tiny(init_from=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "u-net"}, "network must be one of deconvnet, .*, got 'u-net'"),
        ({"crf": "full"}, "crf must be one of dense, conv, none, got 'full'"),
        ({"crf": "none", "crf_options": {"theta_alpha": 3.0}}, "crf_options belong to a CRF, and crf='none' is none"),
        ({"in_channels": 4}, r"in_channels must be 1 \(grey\) or 3 \(RGB\) for a CRF, got 4: use crf='none'"),
        ({"network_options": {"widht": 4}}, "network_options must be arguments of UNet, width, .*, got widht"),
        ({"network_options": {"padding": "valid"}}, "network_options must keep the logits as large as the image"),
        ({"crf_options": {"window": 5}}, "crf_options must be arguments of DenseCRF, .*, got window"),
        ({"crf_options": {"theta_alpha": 0.0}}, "theta_alpha must be more than 0"),
        ({"crf_lr_factor": -1.0}, "crf_lr_factor must be at least 0 and finite, got -1.0"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**arguments) if arguments.get("network") in (None, *TINY) else CRFasRNNModule(3, 255, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("crf", ["dense", "conv"])
def test_equal_on_the_gpu(crf: str) -> None:
    images, masks, module = grey_levels(2, 3, 48, 40), torch.randint(3, (2, 48, 40)), tiny(crf=crf, loss="ce")
    logits, loss = module(images), module.train().loss(images, masks)
    loss.backward()
    gradient = module.network.crf.compatibility.grad
    module.zero_grad()
    module.eval().cuda()
    torch.testing.assert_close(module(images.cuda()).softmax(1).cpu(), logits.softmax(1), atol=1e-4, rtol=1e-3)
    module.train().loss(images.cuda(), masks.cuda()).backward()
    torch.testing.assert_close(module.network.crf.compatibility.grad.cpu(), gradient, atol=1e-4, rtol=1e-2)
