import numpy as np
import pytest
import torch

from lightning_modules.components.scores.segments import segments


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
