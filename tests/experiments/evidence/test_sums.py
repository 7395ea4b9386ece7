"""Scores of sums over images and groups of them, worked out from the summed matrices."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.evidence.cell import sum_up
from experiments.evidence.experiment import flatten
from experiments.evidence.family import score_images
from experiments.evidence.sums import addends, evaluate, group_sums, refuse_groups
from lightning_modules.components.scores.reductions import scores


def draw_matrices(images: int, seed: int = 0) -> NDArray[np.int64]:
    """(images, 3, 3), every class in every image."""
    means = 10 * (np.ones((3, 3)) + 3 * np.eye(3))
    return 1 + np.random.default_rng(seed).poisson(means, (images, 3, 3))


@pytest.mark.parametrize("score", ["miou", "mdice", "macc", "fwiou", "pixel_acc", "iou/1", "dice/0", "acc/2"])
def test_sums_of_addends_give_the_scores_of_the_summed_matrices(score: str) -> None:
    matrices = draw_matrices(7)
    matrices[:, 2] = 0  # a class that is only predicted
    name, _, label = score.partition("/")
    expected = scores(matrices.sum(0))[name]
    found = evaluate(addends(matrices, score).sum(0), score)
    np.testing.assert_allclose(found, expected[int(label)] if label else expected, rtol=1e-12)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    matrices = draw_matrices(5)
    matrices[:, 2] = matrices[:, :, 2] = 0
    found = evaluate(addends(matrices, "miou").sum(0), "miou")
    assert found == pytest.approx(float(scores(matrices.sum(0))["miou"]))


def test_counts_give_to_the_bit_what_their_matrices_give() -> None:
    matrices = np.random.default_rng(0).poisson(5 * (1 + 9 * np.eye(5)), (30, 5, 5))
    matrices[3] = 0  # an image without a label
    counts, _, _ = sum_up([(0, matrices[:11]), (11, matrices[11:])], 30, 5)
    for score in ("miou", "fwiou", "pixel_acc", "iou/2"):
        np.testing.assert_array_equal(addends(counts, score), addends(matrices, score))


def test_a_wrong_score_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"score must be one of miou, .*mean, or iou/k.*below 3, got 'iou/3'"):
        addends(draw_matrices(2), "iou/3")


def test_a_group_is_left_out_as_a_whole() -> None:
    matrices, groups = draw_matrices(6), ["b", "a", "b", "c", "a", "c"]
    found, images = score_images({"v": {0: matrices}}, groups, "miou")
    assert found == {("v", 0): pytest.approx(float(scores(matrices.sum(0))["miou"]))}
    without_a = scores(matrices[[0, 2, 3, 5]].sum(0))["miou"]
    assert images.left_out["v", 0][0] == pytest.approx(float(without_a))
    assert images.sizes.tolist() == [matrices[[1, 4]].sum(), matrices[[0, 2]].sum(), matrices[[3, 5]].sum()]
    assert images.reason == "3 independent images or groups of images, and 8 are needed to speak of others"


def test_groups_without_a_label_count_nowhere() -> None:
    matrices = draw_matrices(9)
    matrices[8] = 0
    _, images = score_images({"v": {0: matrices}}, [str(i) for i in range(9)], "miou")
    assert len(images.sizes) == 8 and not images.reason and len(images.left_out["v", 0]) == 8


def test_a_number_an_image_is_left_out_by_groups_too() -> None:
    values = np.array([1.0, math.nan, 3.0, 8.0])
    found, images = score_images({"v": {0: values}}, ["a", "a", "b", "c"], "mean")
    assert found["v", 0] == 4 and images.left_out["v", 0].tolist() == [5.5, 4.5, 2.0]


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([1] * 7, "7 independent images or groups of images, and 8 are needed to speak of others"),
        ([1] * 8, ""),
        (
            [1] * 7 + [20],
            "they form 8 groups, so unequal that they tell as little as 1.0 equal ones, and 5 are needed to",
        ),
    ],
)
def test_few_groups_and_very_unequal_ones_tell_nothing_of_other_images(sizes: list[float], reason: str) -> None:
    sums = [group_sums(addends(draw_matrices(len(sizes)), "miou"), np.arange(len(sizes)))]
    found = refuse_groups(sums, "miou", np.array(sizes, dtype=float))
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_one_class_in_twenty_may_be_in_few_groups() -> None:
    present = np.ones((8, 21))
    present[3:, 20] = 0
    sums, sizes = np.concatenate([present, present], axis=1), np.ones(8)
    assert refuse_groups([sums], "miou", sizes) == ""
    present[3:, 19] = 0
    sums = np.concatenate([present, present], axis=1)
    reason = "classes in fewer than 6 groups of images: class 19 in 3, class 20 in 3"
    assert refuse_groups([sums], "miou", sizes) == reason
    names = [f"c{k}" for k in range(21)]
    assert "c19 in 3, c20 in 3" in refuse_groups([sums], "miou", sizes, names)
    assert refuse_groups([np.concatenate([present] * 3, axis=1)], "fwiou", sizes) == ""


def test_settings_are_compared_by_dotted_names() -> None:
    assert flatten({"data": {"zoom": [0.5, 2.0]}, "seed": 1, "module": "UNet"}) == {
        "data.zoom": "[0.5, 2.0]",
        "seed": "1",
        "module": "UNet",
    }
    assert flatten({"data.zoom": (0.5, 2.0)}) == {"data.zoom": "[0.5, 2.0]"}
