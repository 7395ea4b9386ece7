import numpy as np
import pytest
import torch

from lightning_modules.components.scores.reductions import LARGER, size_means
from lightning_modules.components.scores.segments import iou_by_size, segments


def maps(*rows: str) -> torch.Tensor:
    """Digits are classes, a point is ignored."""
    return torch.tensor([[255 if c == "." else int(c) for c in row] for row in rows])[None]


def test_a_small_map_worked_out_by_hand() -> None:
    truth = maps("0011", "0011", "0000", "2000", "0002")
    given = maps("0001", "0000", "0110", "0000", "0002")
    counts = segments(given, truth, 4, 255)[0].tolist()
    assert counts[0] == [1, 0, 1, 0]
    assert counts[1] == [1, 0, 2, 1]  # found by one pixel; the two in the third row are made up
    assert counts[2] == [2, 1, 1, 0]  # the left one is missed
    assert counts[3] == [0, 0, 0, 0]


def test_diagonal_neighbours_are_one_segment() -> None:
    assert segments(maps("10", "01"), maps("10", "01"), 2, 255)[0].tolist() == [[1, 0, 1, 0]] * 2


def test_ignored_pixels_neither_count_nor_cut_a_predicted_segment() -> None:
    truth, given = maps("00.00", "....."), maps("11111", "02220")
    counts = segments(given, truth, 3, 255)[0].tolist()
    assert counts[0] == [2, 2, 0, 0]  # the predicted zeros lie in ignored pixels, and so does the 2
    assert counts[1] == [0, 0, 1, 1]
    assert counts[2] == [0, 0, 0, 0]


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_equals_a_flood_fill(ignored: float) -> None:
    generator = torch.Generator().manual_seed(1)
    truth, given = torch.randint(4, (2, 2, 14, 11), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < ignored] = 255
    found = segments(given, truth, 4, 255).numpy()
    for image in range(2):
        expected = np.zeros((4, 4), dtype=int)
        for kind, of in ((0, truth[image].numpy()), (2, given[image].numpy())):
            for label, pixels in components(of):
                labelled = [p for p in pixels if truth[image][p] != 255]
                hits = [p for p in labelled if truth[image][p] == given[image][p]]
                if label != 255 and labelled:
                    expected[label, kind] += 1
                    expected[label, kind + 1] += not hits
        np.testing.assert_array_equal(found[image], expected)


def components(labels: np.ndarray) -> list[tuple[int, list[tuple[int, int]]]]:
    left, found = set(np.ndindex(*labels.shape)), []
    while left:
        pixels = [left.pop()]
        for y, x in pixels:
            around = [(y + v, x + u) for v in (-1, 0, 1) for u in (-1, 0, 1)]
            new = [p for p in around if p in left and labels[p] == labels[y, x]]
            left -= set(new)
            pixels += new
        found.append((int(labels[pixels[0]]), pixels))
    return found


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="masks must hold classes 0 to 1"):
        segments(maps("01"), maps("02"), 2, 255)


def test_iou_of_segments_worked_out_by_hand() -> None:
    # Two true segments of class 1; one predicted segment touches both, another touches none.
    truth = maps("1100000", "1100011", "0000011", "0000000")
    given = maps("0111111", "0000011", "0000000", "1100000")
    sums = iou_by_size(given, truth, 2, 255)[0]
    # Left: 1 of 4 found; the predicted segment has 5 pixels beyond both true ones. Right: 2 of 4.
    number, total = sums[1].sum(0).tolist()
    assert number == 2 and total == pytest.approx(1 / (4 + 5) + 2 / (4 + 5))


def test_sizes_are_shares_of_the_image() -> None:
    truth = torch.zeros(1, 60, 50, dtype=torch.int64)  # 3,000 pixels: medium from 10 on, large from 90 on
    truth[0, 1, 1:10], truth[0, 5, 1:11], truth[0, 10:19, 1:11] = 1, 2, 3
    sums = iou_by_size(truth, truth, 4, 255)[0]
    assert sums[1:, :, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert torch.equal(sums[..., 0], sums[..., 1])  # each is found whole
    assert [round(share * 3000) for share in LARGER] == [10, 90]


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_iou_of_segments_equals_sets_of_pixels(ignored: float) -> None:
    generator = torch.Generator().manual_seed(2)
    truth, given = torch.randint(3, (2, 2, 14, 11), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < ignored] = 255
    found = iou_by_size(given, truth, 3, 255).numpy()
    for image in range(2):
        expected, true = np.zeros((3, 3, 2)), truth[image].numpy()
        of_class = [set(map(tuple, np.argwhere(true == index).tolist())) for index in range(3)]
        guesses = [(label, set(pixels)) for label, pixels in components(given[image].numpy())]
        for label, pixels in components(true):
            if label == 255:
                continue
            touching = [found for kind, found in guesses if kind == label and found & {*pixels}]
            predicted = {p for p in set().union(*touching) if true[p] != 255}
            others = of_class[label] - {*pixels}
            size = sum(len(pixels) >= share * true.size for share in LARGER)
            expected[label, size] += 1, len({*pixels} & predicted) / len(({*pixels} | predicted) - others)
        np.testing.assert_allclose(found[image], expected, atol=1e-12)
        assert expected[..., 0].sum() > 5


def test_without_a_segment_of_a_size_its_mean_is_none() -> None:
    sums = np.array([[[2, 1.0], [0, 0.0], [1, 0.25]], [[2, 0.0], [0, 0.0], [0, 0.0]]])
    small, medium, large = size_means(sums)
    assert (small, large) == (0.25, 0.25) and np.isnan(medium)
