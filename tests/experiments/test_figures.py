"""The figures of an experiment made by hand: what is drawn are the numbers of its cells."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from experiments.evidence.confusions import confusion_shares, frequent_confusions
from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.figures import FIGURES, drawing, missing_figures, write_figures
from experiments.reports.figures.cost import on_front, place_names
from experiments.reports.figures.looks import COLOURS, legend_columns, limits, looks, short
from experiments.reports.figures.pictures import AGREEMENT
from experiments.reports.figures.scores import MOST_CLASSES
from experiments.shell.files import write_atomic, write_json

CLASSES = ["$road$ & _x_", "<b>car</b>", "in no image"]
SIDES = (24, 20)
IMAGES = 8
RIGHT = {"base": (80, 82, 84), "other $1$": (86, 86, 92), "third": (78, 82, 80)}  # pixels in 100, by seed


def confusions(right: int, images: int = IMAGES) -> np.ndarray:
    """Of each image: two classes of 100 pixels each, as many right; some images are a little harder."""
    found = np.zeros((images, 3, 3), dtype=np.int64)
    for image in range(images):
        kept = right + (image % 2 * 2 - 1)
        found[image, :2, :2] = [[kept, 100 - kept], [100 - kept, kept]]
    return found


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_plan(folder: Path, names: Sequence[str], seeds: int, classes: Sequence[str]) -> None:
    plan: dict[str, Any] = {"experiment": "x", "question": "?", "baseline": names[0], "factors": {}}
    plan |= {"seeds": list(range(seeds)), "data": "d", "data_note": "", "scale_note": "", "class_names": list(classes)}
    plan |= {"palette": [[10 * k % 256, 5 * k % 256, 200 - k] for k in range(len(classes))], "common": {}}
    plan |= {"device": "CPU", "command": "c", "commit": "0"}
    cost = {"levels": {}, "parameters": 1, "gmac": 1.0, "step_ratio": 1.0, "peak_memory_mb": 1.0}
    plan["variants"] = {
        name: {**cost, "gmac": 1.0 + number, "step_seconds": 0.1 * (number + 1)} for number, name in enumerate(names)
    }
    write_atomic(folder / "plan.json", json.dumps(plan))


def write_cell(folder: Path, confusion: np.ndarray, *, earlier: bool = False, seed: int = 0) -> None:
    """A finished cell with everything that a cell stores, or with what an earlier version did."""
    images, classes = confusion.shape[:2]
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {
        "names": np.array([f"{image}.png" for image in range(images)]),
        "confusion": confusion,
        "boundary_f1": np.full((images, classes), 0.5),
        "checkerboard": np.full(images, 1e-4 * (1 + seed)),
    }
    samples: dict[str, np.ndarray] = {"logits": rng.normal(size=(classes, *SIDES)).astype(np.float16)}
    samples |= {"initial_logits": samples["logits"][::-1], "names": np.array(["0.png", "1.png"])}
    if not earlier:
        bands = np.zeros((images, 20, classes, classes), dtype=np.int64)
        bands[:, 2] = confusion // 2  # half of all, also of the wrong ones, 2 to 3 pixels from a boundary
        calibration = np.zeros((images, 15, 3))
        calibration[:, 14] = [1000, 970, 800 + 10 * seed]
        calibration[:, 7] = [500, 250, 300]
        calibration[:, 0] = [0.5, 0.01, 0.5]  # too few to be drawn
        segments = np.zeros((images, classes, 4), dtype=np.int64)
        segments[:, 0] = [10, 2, 8, 2]
        arrays |= {"trimap": bands, "calibration": calibration, "segments": segments}
        samples["kinds"] = np.array(["fixed worst", "best"])
    for index in range(2):
        mask = rng.integers(0, 2, SIDES).astype(np.uint8)
        mask[0, 0] = 255
        samples[f"image_{index}"] = rng.integers(0, 255, (*SIDES, 3), dtype=np.uint8)
        samples |= {f"mask_{index}": mask, f"prediction_{index}": np.zeros(SIDES, dtype=np.uint8) + seed % 2}
    save_npz(folder / "per_image.npz", **arrays)
    save_npz(folder / "samples.npz", **samples)
    write_atomic(folder / "metrics.csv", "epoch,step,train/loss,val/miou\n0,5,1.0,\n1,10,0.5,0.4\n")
    write_json(folder / "run.json", {})
    write_json(folder / "environment.json", {})
    write_json(folder / "result.json", {"status": "done", "seconds": 1.0, "epochs": 2})


def write_experiment(folder: Path, seeds: int = 3) -> Experiment:
    for name, right in RIGHT.items():
        for seed in range(seeds):
            write_cell(folder / name / f"seed{seed}", confusions(right[seed]), seed=seed)
    write_plan(folder, list(RIGHT), seeds, CLASSES)
    return load_experiment(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Everything is stored; tests only read it."""
    return write_experiment(tmp_path_factory.mktemp("figures") / "x")


def draw(experiment: Experiment, name: str) -> tuple[Figure, str]:
    with drawing():
        return FIGURES[name][0](experiment)


def texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def labels(axis: Axes) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]


def test_every_figure_is_written_as_picture_and_print(experiment: Experiment, tmp_path: Path) -> None:
    assert missing_figures(experiment) == {}
    written = write_figures(experiment, tmp_path)
    assert list(written) == list(FIGURES)
    for name, (png, caption) in written.items():
        assert png == (tmp_path / "figures" / f"{name}.png").read_bytes() and png.startswith(b"\x89PNG"), name
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
        assert len(caption) > 100 and "  " not in caption, name


@pytest.mark.parametrize("key", ["logits", "initial_logits"])
def test_logits_that_are_not_finite_are_no_picture(key: str, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, seeds=1)
    for name in RIGHT:
        path = tmp_path / name / "seed0" / "samples.npz"
        arrays = dict(np.load(path))
        arrays[key] = arrays[key].copy()
        arrays[key][0, 0, 0] = np.nan  # at a pixel without a label, say
        save_npz(path, **arrays)
    assert missing_figures(experiment)["logits"] == "not stored in these cells, or not finite"


def test_what_earlier_cells_did_not_store_is_left_out_with_a_reason(tmp_path: Path) -> None:
    write_plan(tmp_path, list(RIGHT), 2, CLASSES)
    for name, right in RIGHT.items():
        for seed in range(2):
            write_cell(tmp_path / name / f"seed{seed}", confusions(right[seed]), earlier=True, seed=seed)
    experiment = load_experiment(tmp_path)
    missing = missing_figures(experiment)
    assert set(missing) == {"trimap", "calibration", "extremes"}
    assert all("not stored" in reason or "not all cells stored" in reason for reason in missing.values())
    captions = {name: draw(experiment, name)[1] for name in FIGURES if name not in missing}
    assert "Segments are not stored" in captions["errors"]


def test_one_variant_of_one_seed_has_the_figures_that_need_no_other(tmp_path: Path) -> None:
    write_plan(tmp_path, ["base"], 1, CLASSES)
    write_cell(tmp_path / "base" / "seed0", confusions(80))
    experiment = load_experiment(tmp_path)
    missing = missing_figures(experiment)
    assert missing == {
        "pareto": "all variants cost the same",
        "classes": "no other variant has finished a seed that the baseline has",
    }
    stale = tmp_path / "figures" / "classes.png"
    write_atomic(stale, b"of a report of other cells")
    assert set(write_figures(experiment, tmp_path)) == set(FIGURES) - set(missing)
    assert not stale.exists()


def test_without_the_baseline_there_are_scores_but_no_differences(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    for seed in range(3):
        (tmp_path / "base" / f"seed{seed}" / "result.json").unlink()
    experiment = load_experiment(tmp_path)
    assert missing_figures(experiment) == dict.fromkeys(
        ("classes", "confusion"), "the baseline, base, has no finished seed"
    )
    for name in FIGURES.keys() - missing_figures(experiment):
        draw(experiment, name)


def test_cells_of_different_images_are_not_paired_by_image(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    write_cell(tmp_path / "third" / "seed1", confusions(82, images=6))
    experiment = load_experiment(tmp_path)
    captions = {name: draw(experiment, name)[1] for name in FIGURES}
    assert "for other seeds, the same images, leaves out 0" in captions["classes"]
    assert "95 % interval of the mean for other seeds, the same images" in captions["pareto"]


def test_variants_look_unlike_each_other_and_alike_in_every_design() -> None:
    many = {"factors": {}, "variants": {f"v{number}": {"levels": {}} for number in range(30)}}
    crossed = {
        "factors": {"a": list(range(9)), "b": ["x", "y"]},
        "variants": {f"{a}{b}": {"levels": {"a": a, "b": b}} for a in range(9) for b in "xy"},
    }
    for plan in (many, crossed):
        found = looks(plan)
        assert len({(look.colour, look.marker) for look in found.values()}) == len(found)
        assert len({(look.colour, str(look.line)) for look in found.values()}) == len(found)
    assert looks(crossed)["3x"].colour == looks(crossed)["3y"].colour == COLOURS[3]


def test_long_names_lose_their_middle_and_legends_their_columns() -> None:
    assert short("a-name", 10) == "a-name" and short("two\nlines") == "two lines"
    assert short("first-middle-last", 11) == "first…-last" and len(short("x" * 200)) <= 40
    assert legend_columns(["a", "b"], 4) == 4 and legend_columns(["x" * 40] * 9, 4) == 3
    assert legend_columns(["x" * 200], 4) == 1


def test_limits_keep_the_dots_apart_and_do_not_leave_the_scale() -> None:
    assert limits([40, 60], (-500, 700)) == (20, 80)
    assert limits([90, 99], (60, 120), 0, 100) == pytest.approx((81, 100 + 0.02 * 27))
    assert limits([50], (45, 55)) == (45, 55)
    assert limits([math.nan, 1, 2], (0.9, 2.1)) == (0.9, 2.1)


def test_seeds_are_drawn_where_they_score_and_differ(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "seeds")
    left, right = figure.axes
    assert labels(left) == ["base *", "other $1$", "third"]
    marks = [tuple(one.get_offsets()[0]) for one in left.collections]
    for number, name in enumerate(RIGHT):
        for seed in range(3):
            x, y = marks[3 * number + seed]
            assert x == pytest.approx(100 * experiment.values(name, "miou")[seed]) and abs(y - number) < 0.4
    joined = [line.get_xdata() for line in left.lines if line.get_color() == "#9a9a9a"]
    assert [list(line) for line in joined] == [
        [marks[3 * number + seed][0] for number in range(3)] for seed in range(3)
    ]
    paired = right.collections[0].get_offsets()[:, 0]
    wanted = [experiment.values("other $1$", "miou")[s] - experiment.values("base", "miou")[s] for s in range(3)]
    assert list(paired) == pytest.approx([100 * value for value in wanted])
    assert experiment.compared is not None
    contrast = experiment.compared.differences["other $1$"].contrast
    lines = [line for line in right.lines if line.get_color() == COLOURS[1]][:3]
    bars, heights = [list(line.get_xdata()) for line in lines], [line.get_ydata()[0] for line in lines]
    assert 0.5 < heights[0] < heights[1] < heights[2] < 1.5
    for bar, kind in zip(bars, ("seeds", "images", "both"), strict=True):
        found = contrast.estimate(kind).times(100)
        assert bar == pytest.approx([found.low, found.high])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "other seeds, the same images",
        "other images, the same trained networks",
        "other seeds and other images",
    ]
    assert "not corrected" in caption


def test_an_interval_that_there_is_not_is_named_with_its_reason(tmp_path: Path) -> None:
    _, caption = draw(write_experiment(tmp_path, seeds=2), "seeds")
    assert "No interval for other seeds and other images of other $1$, third: needs 3 seeds, got 2." in caption


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = {
        "cheap": (1.0, 50.0),
        "worse": (2.0, 49.0),
        "better": (2.0, 60.0),
        "same": (2.0, 60.0),
        "dear": (9.0, 60.0),
    }
    assert on_front(points) == {"cheap", "better", "same"}
    assert on_front({"alone": (1.0, 1.0)}) == {"alone"}


def test_names_hide_neither_each_other_nor_leave_the_axes() -> None:
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 10))
    places = [(5 + 0.1 * (number % 4), 5 + 0.3 * (number // 4)) for number in range(12)]
    found = place_names(axis, places, [], [f"a-rather-long-name-{number}" for number in range(12)], ["black"] * 12)
    figure.draw_without_rendering()
    drawn = [Text.get_window_extent(text) for text in axis.texts]  # without the line to the point
    for number, box in enumerate(drawn):
        assert axis.get_window_extent().contains(box.x0, box.y0) and axis.get_window_extent().contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in drawn[:number])
    assert len(found) == len(drawn) == 12


def test_pareto_fills_the_front_and_leaves_out_a_cost_that_is_equal_for_all(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for number, variant in enumerate(plan["variants"].values()):
        variant |= {"gmac": 2.0, "image_seconds": {"network": 0.01, "crf": 0.01 * number}}
    plan["variants"]["third"]["step_seconds"] = None
    write_atomic(tmp_path / "plan.json", json.dumps(plan))
    figure, caption = draw(load_experiment(tmp_path), "pareto")
    assert [axis.get_xlabel() for axis in figure.axes] == ["training step (ms)", "prediction of one image (ms)"]
    assert "Not drawn: GMAC of one image, the same for all variants." in caption
    assert "no claim of significance" in caption and "for other seeds and other images" in caption
    # Of two that cost the same the worse is off the front, though none is both better and cheaper.
    assert "no other variant is as good and as cheap at least, and better in one of the two" in caption
    steps, images = figure.axes
    assert sorted(texts(steps)) == ["base *", "other $1$"]
    marks = [line for line in images.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx([10, 20, 30])
    assert [line.get_markerfacecolor() != "white" for line in marks] == [True, True, False]


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
    kinds = [experiment.compared.differences[name].contrast.estimate("both") for name in list(RIGHT)[1:]]  # type: ignore[union-attr]
    leaves_out = sum(found.low > 0 or found.high < 0 for found in kinds)
    assert len(framed) == 3 * leaves_out
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
    means = [line.get_xdata()[0] for line in segments.lines if line.get_marker() in "o"]
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


def test_extremes_show_the_best_other_variant_and_who_is_right(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "extremes")
    titles = [axis.get_title() for axis in figure.axes]
    assert [title.split("\n")[0] for title in titles[:5]] == ["image", "truth", "base", "other $1$", "which is right"]
    assert "by other $1$, of the other variants the one of highest mean mIoU" in caption
    truth, map_ = figure.axes[1].images[0].get_array(), figure.axes[4].images[0].get_array()
    predicted = figure.axes[2].images[0].get_array()  # the same of both variants here
    right = (np.asarray(truth) == np.asarray(predicted)).all(axis=-1)
    assert (np.asarray(map_)[right] == AGREEMENT["both right"]).all()
    assert (np.asarray(map_)[~right][1:] == AGREEMENT["both wrong"]).all()  # the first pixel is not labelled
    assert [text.get_text()[:6] for text in figure.texts] == ["worst:", "best: "]
