import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import random_generator
from datamodules.transforms import JointTransform, resize, scaled_size


def picture(height: int = 24, width: int = 32, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = random_generator(7)
    image = torch.rand(channels, height, width, generator=generator)
    return image, torch.randint(5, (height, width), generator=generator)


@pytest.mark.parametrize("size", [(12, 16), (31, 17), (48, 64), (7, 100)])
def test_labels_are_those_under_the_centres(size: tuple[int, int]) -> None:
    image, mask = picture()
    resized_image, resized_mask = resize(image, mask, size)
    # The centre (i + 1/2) * length / new of pixel i, in whole numbers.
    rows, columns = ((2 * torch.arange(n) + 1) * old // (2 * n) for n, old in zip(size, mask.shape, strict=True))
    assert resized_mask.equal(mask[rows][:, columns])
    assert resized_image.shape == (3, *size)
    assert 0 <= resized_image.min() <= resized_image.max() <= 1


@pytest.mark.parametrize("size", [(8, 32), (40, 96), (48, 64)])  # no centre falls on the edge of a pixel
def test_labels_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    image, mask = picture()
    expected = Image.fromarray(mask.numpy().astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    assert resize(image, mask, size)[1].equal(torch.from_numpy(np.array(expected)).long())


def test_nothing_changes_without_distortions() -> None:
    image, mask = picture()
    same_image, same_mask = JointTransform((24, 32), (1, 1), False, 0)(image, mask, random_generator(0))
    assert same_image.equal(image) and same_mask.equal(mask)


def test_image_and_mask_move_together() -> None:
    _, mask = picture()
    image = mask[None] / 4
    seen = set()
    for i in range(30):
        crop, labels = JointTransform((9, 11), (1, 1), True, 0)(image, mask, random_generator(i))
        assert crop.equal(labels[None] / 4)
        seen.add(tuple(labels.flatten().tolist()))
    assert len(seen) > 20


@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.5, 2.0])
def test_window_is_a_crop_of_the_scaled_image(zoom: float) -> None:
    """Scaling only the window is scaling everything and cropping, up to the pixels at the border of the window."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    mask = (4 * y).long() + 5 * (4 * x).long()
    transform = JointTransform((48, 48), (zoom, zoom), False, 0)
    crop, labels = transform(torch.stack([y, x]), mask, random_generator(1))
    for gradient, pixels in ((crop[0].diff(dim=0), 96), (crop[1].diff(dim=1), 128)):
        step = 1 / zoom / (pixels - 1)
        torch.testing.assert_close(gradient[4:-4, 4:-4], torch.full_like(gradient[4:-4, 4:-4], step), rtol=0.05, atol=0)
    expected = (4 * crop[0]).long() + 5 * (4 * crop[1]).long()
    assert (labels == expected).float().mean() > 0.9


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_is_ignored_and_filled_with_the_mean(channels: int) -> None:
    image, mask = picture(channels=channels)
    padded, labels = JointTransform(32, (0.5, 0.5), False, 0.2)(image, mask, random_generator(0))
    assert padded.shape == (channels, 32, 32) and labels.shape == (32, 32)
    inside = padded[:, :12, :16]
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[:12, :16] = False
    assert (labels[outside] == 255).all() and (labels[~outside] < 5).all()
    torch.testing.assert_close(padded[:, outside], inside.mean((1, 2))[:, None].expand(-1, int(outside.sum())))


@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_labels_stay_valid(channels: int) -> None:
    image, mask = picture(channels=channels)
    for i in range(50):
        crop, labels = JointTransform((20, 28), (0.5, 2.0), True, 0.9)(image, mask, random_generator(i))
        assert crop.shape == (channels, 20, 28) and crop.is_contiguous() and labels.is_contiguous()
        assert 0 <= crop.min() <= crop.max() <= 1
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 4, 255}


def test_flip_mirrors_half_of_the_images() -> None:
    image, mask = picture()
    flips = [JointTransform((24, 32), (1, 1), True, 0)(image, mask, random_generator(i))[1] for i in range(200)]
    mirrored = sum(labels.equal(mask.flip(1)) for labels in flips)
    assert 70 < mirrored < 130
    assert mirrored + sum(labels.equal(mask) for labels in flips) == 200


def test_neighbouring_keys_give_unrelated_numbers() -> None:
    numbers = torch.stack([torch.rand(8, generator=random_generator(0, 0, i)) for i in range(2000)])
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.1
    assert (numbers.mean(0) - 0.5).abs().max() < 0.04
    assert abs(torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (0.5, 2.0), True, 0.2), "crop must be at least 1"),
        ((8, (2.0, 0.5), True, 0.2), "zoom must be two positive numbers"),
        ((8, (0.0, 1.0), True, 0.2), "zoom must be two positive numbers"),
        ((8, (0.5, 2.0), True, 1.5), "jitter must be at least 0"),
    ],
)
def test_bad_arguments(arguments: tuple[int, tuple[float, float], bool, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointTransform(*arguments)


def test_scaled_size() -> None:
    mask = torch.zeros(233, 197)
    assert scaled_size(mask, 0.5) == (116, 98)
    assert scaled_size(mask, 1e-9) == (1, 1)
    with pytest.raises(ValueError, match="scale must be more than 0, got 0"):
        scaled_size(mask, 0)
