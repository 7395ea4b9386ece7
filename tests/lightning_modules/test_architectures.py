"""What every architecture promises, whatever its paper."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import defaults
from experiments.shell.catalogue import ARCHITECTURES, load
from lightning_modules import catalogue
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS
from lightning_modules.components.encoders import NATIVE, Encoder
from lightning_modules.crf_as_rnn import CRFasRNNModule

SMALL = {name: architecture.small for name, architecture in catalogue.ARCHITECTURES.items()}


def on_network(name: str) -> dict[str, Any]:
    """The small network `name` for an architecture that stands on another."""
    recipe = defaults(SegmentationModule)
    return {"network": name, "network_options": {k: v for k, v in SMALL[name].items() if k not in recipe}}


@pytest.fixture(params=ARCHITECTURES)
def module(request: pytest.FixtureRequest) -> SegmentationModule:
    return ARCHITECTURES[request.param](3, 255, **SMALL[request.param])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 47)])
def test_logits_have_the_size_of_the_image(module: SegmentationModule, height: int, width: int) -> None:
    assert module(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_takes_any_number_of_channels(name: str) -> None:
    module = ARCHITECTURES[name](2, 255, in_channels=1, **SMALL[name])
    assert module.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_gradient_reaches_every_parameter(module: SegmentationModule) -> None:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    for _ in range(2):  # FCN's scores start at zero, so that nothing below them has a gradient in the first step
        optimizer.zero_grad()
        module.loss(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))).backward()
        optimizer.step()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def with_known_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder as if it had weights that were trained with MEAN and STD."""
    monkeypatch.setattr(Encoder, "mean", MEAN)
    monkeypatch.setattr(Encoder, "std", STD)
    for file in ("smp", "components.encoders.smp"):
        monkeypatch.setattr(f"lightning_modules.{file}.load_smp", lambda *args: (MEAN, STD))


ON_ENCODERS = [name for name, module in ARCHITECTURES.items() if "encoder_width" in defaults(module)]
ENCODED = [  # architectures by each of the encoders or networks that they take
    *((name, {"encoder": encoder, "encoder_width": 0.0625}) for name in ON_ENCODERS for encoder in NATIVE),
    *((name, {"encoder": "smp-resnet18", "encoder_width": 1.0}) for name in ON_ENCODERS),
    *((name, {}) for name in ARCHITECTURES if name not in ON_ENCODERS),
    *((name, on_network(net)) for name in ("pointrend", "crf_as_rnn") for net in NETWORKS),
]


@pytest.mark.parametrize(("name", "options"), ENCODED, ids=str)
def test_images_are_normalised_as_the_weights_of_the_encoder_expect(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_known_normalisation(monkeypatch)
    module = ARCHITECTURES[name](3, 255, **{**SMALL[name], **options})
    pretrained = name == "smp" or any(isinstance(part, Encoder) for part in module.modules())
    assert pretrained == (module.mean.flatten().tolist() == pytest.approx(MEAN))
    assert pretrained == (module.std.flatten().tolist() == pytest.approx(STD))


class Step(nn.Module):
    """What DistributedDataParallel wraps in a training step."""

    def __init__(self, module: SegmentationModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.module.loss(images, masks)


def test_trains_under_ddp_without_unused_parameters(module: SegmentationModule, tmp_path: Path) -> None:
    # One process is enough: DDP waits for the gradient of every parameter, and says so in the next step.
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(Step(module.train()))
        for _ in range(2):
            parallel(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))).backward()
    finally:
        distributed.destroy_process_group()


def test_ignored_pixels_change_neither_loss_nor_gradient(module: SegmentationModule) -> None:
    logits, masks = torch.rand(2, 3, 8, 8, requires_grad=True), torch.randint(3, (2, 8, 8))
    masks[:, :4] = 255
    loss = module.loss_function(logits, masks, 255, None)
    (gradient,) = torch.autograd.grad(loss, logits)
    wild = logits.detach().masked_fill((masks == 255)[:, None], 1e4).requires_grad_()
    wild_loss = module.loss_function(wild, masks, 255, None)
    torch.testing.assert_close(wild_loss, loss)
    torch.testing.assert_close(torch.autograd.grad(wild_loss, wild)[0], gradient)
    assert not gradient[:, :, :4].any()


def test_a_batch_without_labels_has_zero_loss_and_zero_gradient(module: SegmentationModule) -> None:
    loss = module.loss(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in module.parameters() if p.grad is not None)


def test_trains_on_a_batch_of_one(module: SegmentationModule) -> None:
    loss = module.train().loss(torch.rand(1, 3, 64, 64), torch.randint(3, (1, 64, 64)))
    loss.backward()
    assert torch.isfinite(loss)


def test_checkpoint_alone_rebuilds_the_module(module: SegmentationModule, tmp_path: Path) -> None:
    data = ShapesDataModule(length=4)
    module.describe(data.class_names, data.palette)
    trainer = Trainer(
        max_steps=1,
        limit_val_batches=1,
        logger=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    assert type(loaded) is type(module)
    assert (loaded.class_names, loaded.palette) == (data.class_names, data.palette)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), module.eval()(images))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_last_changes_the_memory_and_no_number(name: str) -> None:
    torch.manual_seed(0)
    images, masks = torch.rand(2, 3, 64, 96).double(), torch.randint(3, (2, 64, 96))
    plain, last = (ARCHITECTURES[name](3, 255, **SMALL[name], channels_last=c).double() for c in (False, True))
    last.load_state_dict(plain.state_dict())
    for part in (*plain.modules(), *last.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # which values it drops follows from where they lie
    weights = [p for p in last.network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    seen: list[Tensor] = []
    for module in (plain, last):
        handle = module.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        torch.manual_seed(1)
        module.loss(images, masks).backward()
        handle.remove()
    for (key, ours), theirs in zip(last.named_parameters(), plain.parameters(), strict=True):
        if ours.grad is not None or theirs.grad is not None:
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}"
            )
    with torch.no_grad():
        logits = last.eval()(images)
        torch.testing.assert_close(logits, plain.eval()(images), rtol=1e-6, atol=1e-8)
    assert logits.is_contiguous()  # as it is stored and scored
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert all(w.grad is None or w.grad.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] in ([False, True], [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_predicts_in_another_precision_as_in_float32(module: SegmentationModule, dtype: torch.dtype) -> None:
    images = torch.rand(1, 3, 4, 40).repeat_interleave(8, 2).repeat_interleave(8, 3)
    expected = module.eval()(images)
    logits = module.to(dtype)(images.to(dtype))
    assert logits.isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(logits.float(), expected, rtol=1e-3, atol=1e-4 * expected.std().item() + 1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_trace_is_the_network_on_other_images(module: SegmentationModule) -> None:
    if isinstance(module, CRFasRNNModule):  # its lattice is refused: see refinement/test_tracing.py
        module.network.crf = None
    images, others = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        trace: Any = module.eval().to_torchscript(method="trace", example_inputs=images, check_trace=False)
        for x in (images, others):
            torch.testing.assert_close(trace(x), module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_trains_and_is_scored_in_another_precision(module: SegmentationModule, precision: str, tmp_path: Path) -> None:
    data = ShapesDataModule(length=4)
    module.describe(data.class_names, data.palette)
    trainer = Trainer(
        max_steps=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    (found,) = trainer.test(module, data, verbose=False)
    assert 0 <= found["test/boundary_f1"] <= 1 and found["test/loss"] < float("inf")


def test_refinement_follows_every_network_in_evaluation_only(module: SegmentationModule) -> None:
    images, seen = torch.rand(1, 3, 40, 56), []

    def turned(probabilities: Tensor, images: Tensor) -> Tensor:
        seen.append(images)
        return probabilities.flip(1)

    plain = module.eval()(images)
    module.refine = turned
    torch.testing.assert_close(module(images).softmax(1), plain.softmax(1).flip(1))
    assert torch.equal(seen[0], images)  # as they come: neither normalised nor padded
    module.train().loss(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64)))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"class_weights": (1.0, float("nan"), 1.0)}, "class_weights must be at least 0, finite"),
        ({"class_weights": 1.0}, "class_weights must hold one weight for each of the 3 classes"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be finite and more than 0"),
        ({"lr": float("inf")}, "lr must be at least 0 and finite"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_what_every_module_refuses(hparams: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARCHITECTURES["unet"](3, 255, width=2, depth=1, **hparams)


def test_classes_and_the_ignored_label_are_apart() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ARCHITECTURES["unet"](0, 255)
    with pytest.raises(ValueError, match="ignore_index must be a label that none of the 3 classes has, got 1"):
        ARCHITECTURES["unet"](3, 1)


def test_one_value_a_channel_is_refused_with_the_way_out(tmp_path: Path) -> None:
    module = ARCHITECTURES["unet"](3, 255, width=2, depth=4, norm="batch")
    trainer = Trainer(
        max_steps=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu"
    )
    data = ShapesDataModule(length=4, size=16, crop=16, batch_size=1)
    with pytest.raises(ValueError, match=r"one value a channel .* use larger crops, larger batches"):
        trainer.fit(module, data)
