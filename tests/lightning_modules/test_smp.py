from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from lightning_modules.smp import SmpModule


@pytest.mark.parametrize("arch", ["FPN", "DeepLabV3Plus", "Linknet"])
def test_any_architecture_keeps_odd_sizes(arch: str) -> None:
    module = SmpModule(4, 255, arch=arch, encoder="resnet18").eval()
    with torch.no_grad():
        assert module(torch.rand(1, 3, 70, 101)).shape == (1, 4, 70, 101)


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
