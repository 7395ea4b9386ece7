import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import random_generator
from datamodules.transforms import JointTransform, deform, resize, scaled_size


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


WHOLE = (slice(None), slice(None))


def test_a_constant_displacement_moves_the_picture_and_mirrors_it_at_the_border() -> None:
    image, mask = picture()
    vectors = torch.tensor([2.0, -3.0]).view(2, 1, 1).expand(2, 3, 3)  # each pixel shows what is 2 below, 3 to the left
    moved, labels = deform(image, mask, vectors, *WHOLE)
    rows = torch.tensor([*range(2, 24), 22, 21])  # 23, mirrored: 22, 21
    columns = torch.tensor([3, 2, 1, *range(29)])
    torch.testing.assert_close(moved, image[:, rows][:, :, columns], rtol=0, atol=1e-4)
    assert labels.equal(mask[rows][:, columns])


def test_displacements_between_the_grid_points_are_bicubic() -> None:
    """The grid has a point in each corner, in the middle of each side and in the centre, the vectors down and right."""
    y, x = torch.meshgrid(torch.arange(65.0), torch.arange(97.0), indexing="ij")
    image, vectors = torch.stack([y / 64, x / 96]), torch.randn(2, 3, 3)
    found, _ = deform(image, torch.zeros(65, 97, dtype=torch.int64), 2 * vectors, *WHOLE)
    moved = found * torch.tensor([64, 96]).view(2, 1, 1) - torch.stack([y, x])
    torch.testing.assert_close(moved[:, 32, 48], 2 * vectors[:, 1, 1], rtol=0, atol=1e-3)
    smooth = torch.nn.functional.interpolate(2 * vectors[None], (65, 97), mode="bicubic", align_corners=True)[0]
    inside = slice(16, -16)  # where nothing is mirrored
    torch.testing.assert_close(moved[:, inside, inside], smooth[:, inside, inside], rtol=0, atol=1e-3)


def test_a_window_of_the_deformed_picture_is_cut_from_it() -> None:
    image, mask = picture()
    vectors = 3 * torch.randn(2, 3, 3)
    whole_image, whole_mask = deform(image, mask, vectors, *WHOLE)
    rows, columns = slice(3, 20), slice(10, 31)
    part_image, part_mask = deform(image, mask, vectors, rows, columns)
    torch.testing.assert_close(part_image, whole_image[:, rows, columns], rtol=0, atol=1e-5)
    assert part_mask.equal(whole_mask[rows, columns])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 3)])
def test_the_smallest_pictures_are_deformed_too(height: int, width: int) -> None:
    image, mask = torch.full((1, height, width), 0.5), torch.full((height, width), 255)
    assert [t.tolist() for t in deform(image, mask, 30 * torch.randn(2, 3, 3), *WHOLE)] == [
        image.tolist(),
        mask.tolist(),
    ]


def test_deformed_labels_stay_under_the_deformed_image() -> None:
    blocks = torch.randint(2, (8, 8)).repeat_interleave(16, 0).repeat_interleave(16, 1)
    seen = set()
    for i in range(10):
        transform = JointTransform(128, (1, 1), True, 0, elastic=10)
        image, labels = transform(blocks[None].float(), blocks, random_generator(i))
        away = (image[0] < 1e-3) | (image[0] > 1 - 1e-3)  # from the edges of the blocks, where bilinear is grey
        assert away.float().mean() > 0.8
        assert image[0].round()[away].equal(labels[away].float())
        assert (image[0] - labels).abs().max() <= 0.75 + 1e-3  # the nearest of four pixels weighs at least a quarter
        assert set(labels.unique().tolist()) == {0, 1}
        assert 0.02 < (labels != blocks).float().mean()
        seen.add(tuple(labels.flatten().tolist()))
    assert len(seen) == 10


def test_elastic_deformation_leaves_the_other_numbers_as_they_are() -> None:
    """What is not the deformation, the window and the flip, is drawn alike with it and without."""
    _, mask = picture(48, 64)
    still = JointTransform((12, 16), (0.5, 2.0), True, 0.3)
    barely = JointTransform((12, 16), (0.5, 2.0), True, 0.3, elastic=1e-6)
    for i in range(20):
        (image, labels), (other, moved) = (t(mask[None] / 4, mask, random_generator(i)) for t in (still, barely))
        assert labels.equal(moved)
        torch.testing.assert_close(image, other, rtol=0, atol=1e-4)


def test_deformed_samples_follow_from_the_generator_alone() -> None:
    image, mask = picture()
    first, again, other = (
        JointTransform(20, (0.5, 2.0), True, 0.2, elastic=4)(image, mask, random_generator(0, 1, i)) for i in (2, 2, 3)
    )
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    assert not first[0].equal(other[0])


def test_displacements_have_the_stated_deviation() -> None:
    """A ramp shows how far its centre, a point of the grid, has come."""
    image, mask = torch.linspace(0, 1, 201).repeat(201, 1)[None], torch.zeros(201, 201, dtype=torch.int64)
    transform = JointTransform(201, (1, 1), False, 0, elastic=10)
    right = [200 * transform(image, mask, random_generator(i))[0][0, 100, 100].item() - 100 for i in range(400)]
    assert torch.tensor(right).std().item() == pytest.approx(10, rel=0.1)
    assert abs(sum(right) / 400) < 1.5


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


def test_a_negative_deformation_is_refused() -> None:
    with pytest.raises(ValueError, match="elastic must be at least 0 pixels, got -1"):
        JointTransform(8, (0.5, 2.0), True, 0.2, elastic=-1)


def test_scaled_size() -> None:
    mask = torch.zeros(233, 197)
    assert scaled_size(mask, 0.5) == (116, 98)
    assert scaled_size(mask, 1e-9) == (1, 1)
    with pytest.raises(ValueError, match="scale must be more than 0, got 0"):
        scaled_size(mask, 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_images_of_any_number_of_channels_are_jittered(channels: int) -> None:
    image, mask = 0.3 + 0.4 * torch.rand(channels, 6, 6), torch.zeros(6, 6).long()
    transform = JointTransform(6, (1, 1), False, 0.2)
    for seed in range(5):
        brightness, contrast = (0.8 + 0.4 * number for number in torch.rand(7, generator=random_generator(seed))[4:6])
        found, _ = transform(image, mask, random_generator(seed))
        assert found.shape == image.shape
        if channels != 3:  # of RGB the mean is weighted, and the saturation changes too
            bright = brightness * image
            expected = bright.mean() + contrast * (bright - bright.mean())
            torch.testing.assert_close(found, expected.clamp(0, 1))
