"""The figures of classes and of errors: what is drawn are the numbers of cells made by hand."""

from pathlib import Path

import numpy as np
import pytest
from drawn import CLASSES, RIGHT, confusions, draw, labels, texts, write_cell, write_plan
from matplotlib.patches import Rectangle

from experiments.evidence.confusions import confusion_shares, frequent_confusions
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.figures.looks import MARKERS
from experiments.reports.figures.scores import MOST_CLASSES


def test_class_map_shows_the_differences_and_frames_what_leaves_out_zero(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "classes")
    axis = figure.axes[0]
    assert labels(axis) == [
        f"{CLASSES[0]} (50.0 %)",
        f"{CLASSES[1]} (50.0 %)",
        "in no image (in no test image)",
        "mIoU",
    ]
    # Both classes have the same IoU, r / (200 - r) of r right pixels in 100, so that of the mean too.
    iou = {name: np.mean([100 * r / (200 - r) for r in right]) for name, right in RIGHT.items()}
    wanted = [f"{iou[name] - iou['base']:+.1f}" for name in ("other $1$", "third")]
    assert texts(axis) == wanted * 3
    framed = [box for box in axis.patches if isinstance(box, Rectangle)]
    # Both classes have the same scores as the mean, so the same intervals.
    leaves_out = sum(row.own_low > 0 or row.own_high < 0 for row in experiment.comparisons.values())
    assert len(framed) == 3 * leaves_out > 0
    picture = axis.images[0]
    assert picture.norm.vmin == -picture.norm.vmax and picture.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01)
    assert "not corrected for the number of classes" in caption


def test_a_class_that_is_predicted_but_in_no_image_has_no_difference(tmp_path: Path) -> None:
    write_plan(tmp_path, ["a", "b"], 1, CLASSES)
    confusion = confusions(80)
    confusion[:, 0, 2] = 5
    write_cell(tmp_path / "a" / "seed0", confusion)
    write_cell(tmp_path / "b" / "seed0", 2 * confusion)
    figure, _ = draw(load_experiment(tmp_path), "classes")
    assert texts(figure.axes[0]) == ["0.00"] * 3  # the two other classes and the mIoU


def many_classes(folder: Path, classes: int) -> Experiment:
    """Class k of the second variant gains as much as k tells, the others nothing."""
    names = [f"class {k}" for k in range(classes)]
    write_plan(folder, ["a", "b"], 1, names)
    for name in ("a", "b"):
        confusion = np.zeros((6, classes, classes), dtype=np.int64)
        right = 500 + (np.arange(classes) if name == "b" else 0)
        confusion[:, range(classes), range(classes)] = right
        confusion[:, range(classes), [*range(1, classes), 0]] = 1000 - right
        write_cell(folder / name / "seed0", confusion, earlier=True)
    return load_experiment(folder)


def test_of_many_classes_those_that_move_most_are_shown_and_the_cut_is_named(tmp_path: Path) -> None:
    experiment = many_classes(tmp_path, 150)
    figure, caption = draw(experiment, "classes")
    shown = labels(figure.axes[0])
    assert len(shown) == MOST_CLASSES + 1 and shown[-2].startswith("class 149 ") and shown[-1] == "mIoU"
    assert (
        f"the {MOST_CLASSES} of 150 classes that move most" in caption and "none of the others moves by more" in caption
    )
    figure, caption = draw(experiment, "confusion")
    assert "of 150 classes with the most wrong pixels" in caption and not texts(figure.axes[0])


def test_confusion_is_normalised_by_the_truth_and_compared_with_the_variant_furthest_off(
    experiment: Experiment,
) -> None:
    figure, caption = draw(experiment, "confusion")
    left, right = figure.axes[:2]
    assert texts(left) == ["82", "18", "0", "18", "82", "0"]  # the row of a class without a pixel has no number
    # 86, 86, 92 less 80, 82, 84 of 100 pixels.
    assert texts(right) == ["+6.0", "-6.0", "0.0", "-6.0", "+6.0", "0.0"]
    assert "the same matrix of other $1$ minus it" in caption and "differs most" in caption


def test_errors_add_up_to_the_wrong_pixels_and_lie_where_the_trimap_says(experiment: Experiment) -> None:
    figure, _ = draw(experiment, "errors")
    wrong, segments, pairs = figure.axes
    bars = [bar.get_width() for bar in wrong.patches]
    assert bars[::2] == pytest.approx([18, 12, 20])  # of 100
    near = [
        np.mean([100 * values[s] * shares[s] for s in range(3)])
        for values, shares in (
            (experiment.values(name, "wrong"), experiment.values(name, "boundary_errors")) for name in RIGHT
        )
    ]
    assert bars[1::2] == pytest.approx(near) and bars[1] < bars[0]
    means = [line.get_xdata()[0] for line in segments.lines if line.get_marker() in MARKERS]
    assert means == pytest.approx([20, 25] * 3)
    assert labels(pairs) == [f"{CLASSES[0]} → {CLASSES[1]}", f"{CLASSES[1]} → {CLASSES[0]}"]


def test_confusions_are_shares_of_all_wrong_pixels(tmp_path: Path) -> None:
    confusion = np.array([[[50, 6, 1], [2, 40, 0], [0, 1, 9]]] * 6)
    write_plan(tmp_path, ["a", "b"], 1, CLASSES)
    write_cell(tmp_path / "a" / "seed0", confusion)
    write_cell(tmp_path / "b" / "seed0", confusion.transpose(0, 2, 1))
    experiment = load_experiment(tmp_path)
    shares = confusion_shares(experiment)
    assert shares["a"][0, 1] == pytest.approx(0.6)
    assert shares["b"][1, 0] == pytest.approx(0.6)
    # Mean shares: (0, 1) and (1, 0) 40 % each, (0, 2), (2, 0), (1, 2), (2, 1) 5 % each.
    found = frequent_confusions(shares)
    assert list(found) == [(0, 1), (1, 0), (0, 2), (1, 2), (2, 0), (2, 1)]
    assert list(found.values()) == pytest.approx([0.4, 0.4, 0.05, 0.05, 0.05, 0.05])


def test_calibration_draws_accuracy_against_confidence_without_rare_bins(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "calibration")
    curve, counts, error = figure.axes
    drawn = curve.lines[1]
    # Seeds 0, 1, 2 together: 250 of 500 confident and 300 right; 970 of 1000, and 800, 810, 820 right.
    assert drawn.get_xdata() == pytest.approx(np.array([50, 97])) and drawn.get_ydata() == pytest.approx(
        np.array([60, 81])
    )
    values = [100 * value for value in experiment.values("base", "ece").values()]
    assert list(error.collections[0].get_offsets()[:, 0]) == pytest.approx(values)
    assert counts.get_ylabel() == "pixels (%)" and "Bins with fewer than 0.1 %" in caption
