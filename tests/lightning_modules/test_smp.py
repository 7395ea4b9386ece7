from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from lightning_modules.smp import BatchNorm2d, SmpModule

ARCHITECTURES = sorted(name for name in smp.__all__ if isinstance(getattr(smp, name), type))
ENCODERS = {"DPT": "tu-test_vit"}  # the only one without a ResNet


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_architecture_keeps_any_size_and_trains_all_its_parameters_on_one_image(arch: str) -> None:
    module = SmpModule(4, 255, arch=arch, encoder=ENCODERS.get(arch, "resnet18"))
    assert module.smallest == (128 if arch == "PAN" else 32)
    module.loss(torch.rand(1, 3, 31, 33), torch.zeros(1, 31, 33, dtype=torch.long)).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []
    module.eval()
    with torch.no_grad():
        for size in ((1, 1), (64, 96), (70, 101)):
            logits = module(torch.rand(1, 3, *size))
            assert logits.shape == (1, 4, *size)
            assert logits.isfinite().all()


def test_the_layers_that_were_taken_out_changed_nothing() -> None:
    module = SmpModule(2, 255, arch="PSPNet", encoder="resnet18", mean=[0.0] * 3, std=[1.0] * 3).eval()
    reference = smp.create_model("PSPNet", "resnet18", None, classes=2).eval()
    assert len(list(reference.parameters())) == len(list(module.parameters())) + 30  # layer3 and layer4
    reference.load_state_dict(module.network.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(module(images), reference(images))


def test_a_batch_of_two_is_normalised_by_its_own_statistics() -> None:
    reference = torch.nn.BatchNorm2d(3)
    norm, x = BatchNorm2d(3), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(x[:1]), norm.eval()(x[:1]))
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        (
            "Unet",
            "tu-test_vit",
            r"arch='Unet' .*encoder='tu-test_vit', which timm makes .*160 x 160.*'tu-convnext_atto'",
        ),
        ("DPT", "resnet18", r"Only Timm encoders.*'tu-vit_tiny_patch16_224'"),
        ("DPT", "tu-beit_base_patch16_224", r"which timm makes for images of 224 x 224: .*no image of 32"),
        ("DPT", "tu-vit_small_patch14_dinov2", "divisible by 14.*16 x 16 patches"),
    ],
)
def test_an_encoder_that_does_not_go_with_the_architecture_says_why(arch: str, encoder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        SmpModule(2, 255, arch=arch, encoder=encoder)


@pytest.mark.parametrize(
    ("arch", "encoder"), [("DPT", "tu-vit_tiny_patch16_224"), ("Unet", "tu-swin_tiny_patch4_window7_224")]
)
def test_transformers_made_for_one_size_take_any(arch: str, encoder: str) -> None:
    with torch.device("meta"):
        module = SmpModule(2, 255, arch=arch, encoder=encoder).eval()
        assert module(torch.rand(1, 3, 50, 99)).shape == (1, 2, 50, 99)


def test_timm_encoders_work_by_their_tu_name() -> None:
    module = SmpModule(2, 255, encoder="tu-mobilenetv3_small_050").eval()
    with torch.no_grad():
        assert module(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    source = SmpModule(2, 255, encoder="resnet18")
    torch.save(source.network.encoder.state_dict(), tmp_path / "resnet18.pth")
    loaded = SmpModule(2, 255, encoder="resnet18", weights=str(tmp_path / "resnet18.pth"))
    torch.testing.assert_close(loaded.network.encoder.conv1.weight, source.network.encoder.conv1.weight)


def test_errors_name_the_choices_and_the_missing_file() -> None:
    with pytest.raises(ValueError, match=r"arch must be one of .*unet.*, got 'SegFormerV9'"):
        SmpModule(2, 255, arch="SegFormerV9")
    with pytest.raises(FileNotFoundError, match=r"no/such\.pth"):
        SmpModule(2, 255, weights="no/such.pth")
    with pytest.raises(ValueError, match="resnet1000"):
        SmpModule(2, 255, encoder="resnet1000")


def test_is_the_network_of_smp_after_normalisation() -> None:
    module = SmpModule(3, 255, encoder="resnet18").eval()
    reference = smp.create_model("Unet", "resnet18", None, classes=3).eval()
    reference.load_state_dict(module.network.state_dict())
    images = torch.rand(1, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = reference((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(module(images), expected)
