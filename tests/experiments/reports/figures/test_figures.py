"""The figures of an experiment made by hand: what is drawn are the numbers of its cells."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from drawn import (
    CLASSES,
    RIGHT,
    confusions,
    draw,
    labels,
    save_npz,
    texts,
    write_cell,
    write_experiment,
    write_plan,
)

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.figures import FIGURES, missing_figures, write_figures
from experiments.reports.figures.cost import on_front
from experiments.reports.figures.forms import COLUMN, WIDE, Form
from experiments.reports.figures.looks import COLOURS, MARKERS, legend_columns, limits, looks, short
from experiments.shell.files import write_atomic


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
    assert set(missing) == {"trimap", "calibration", "coverage", "extremes"}
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
    assert set(write_figures(experiment, tmp_path, chosen=["classes"])) == {"seeds", "seeds-narrow"}
    assert not stale.exists()
    for name in FIGURES.keys() - missing.keys():
        draw(experiment, name, COLUMN)


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
    assert "for other seeds, these images only, leaves out 0" in captions["classes"]
    assert "for other seeds and these test images only" in captions["seeds"]


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


@pytest.mark.parametrize("form", [WIDE, COLUMN], ids=["wide", "column"])
def test_seeds_are_drawn_where_they_score_and_differ(form: Form, experiment: Experiment) -> None:
    figure, caption = draw(experiment, "seeds", form)
    left, right = figure.axes if form is WIDE else figure.axes[::-1]
    assert labels(left) == ["base (baseline)" if form is WIDE else "base", "other $1$", "third"]
    marks = [tuple(one.get_offsets()[0]) for one in left.collections]
    for number, variant in enumerate(RIGHT):
        for seed in range(3):
            x, y = marks[3 * number + seed]
            assert x == pytest.approx(100 * experiment.values(variant, "miou")[seed]) and abs(y - number) < 0.4
    joined = [line.get_xdata() for line in left.lines if line.get_color() == "#9a9a9a"]
    assert [list(line) for line in joined] == [
        [marks[3 * number + seed][0] for number in range(3)] for seed in range(3)
    ]
    paired = right.collections[0].get_offsets()[:, 0]
    wanted = [experiment.values("other $1$", "miou")[s] - experiment.values("base", "miou")[s] for s in range(3)]
    assert list(paired) == pytest.approx([100 * value for value in wanted])
    for variant, colour in (("other $1$", COLOURS[1]), ("third", COLOURS[2])):
        row = experiment.family.rows[variant]
        bar, mean = [line.get_xdata() for line in right.lines if line.get_color() == colour]
        assert list(bar) == pytest.approx([100 * row.low, 100 * row.high])
        assert list(mean) == pytest.approx([100 * row.estimate] * 2)
    assert experiment.family.images_only and "these images only" in right.get_xlabel()
    assert "hold for all 2 comparisons and effects of this report together, for other seeds and these" in caption
    assert len(caption.partition(". ")[0].split()) <= 40


def test_a_star_stands_where_the_bar_leaves_out_zero(tmp_path: Path) -> None:
    write_plan(tmp_path, ["base", "better", "like it"], 3, CLASSES)
    for name, right in {"base": (70, 71, 72), "better": (90, 91, 93), "like it": (70, 72, 71)}.items():
        for seed in range(3):
            write_cell(tmp_path / name / f"seed{seed}", confusions(right[seed]), seed=seed)
    experiment = load_experiment(tmp_path)
    right = draw(experiment, "seeds")[0].axes[1]
    assert {name: row.star for name, row in experiment.comparisons.items()} == {"better": True, "like it": False}
    assert [text.get_position()[1] for text in right.texts if text.get_text() == "*"] == [1]


def test_a_row_without_an_interval_says_why(tmp_path: Path) -> None:
    figure, caption = draw(write_experiment(tmp_path, seeds=2), "seeds")
    assert texts(figure.axes[1])[1:] == ["no interval: needs 3 seeds, got 2"] * 2
    assert "No interval can be given." in caption


def test_no_interval_is_drawn_of_a_single_score(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "scores")
    energy = figure.axes[2]
    assert energy.get_xscale() == "log" and energy.get_xlabel() == "checkerboard energy (ppm, log scale)"
    line = next(line for line in figure.axes[0].lines if line.get_color() == COLOURS[1] and len(line.get_xdata()) == 2)
    values = [100 * value for value in experiment.values("other $1$", "miou").values()]
    assert list(line.get_xdata()) == pytest.approx([min(values), max(values)])
    assert "no interval" in caption and "95 %" not in caption


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
    assert "no claim of significance" in caption and "no interval" in caption
    # Of two that cost the same the worse is off the front, though none is both better and cheaper.
    assert "no other variant is as good and as cheap at least, and better in one of the two" in caption
    steps, images = figure.axes
    assert sorted(texts(steps)) == ["base (baseline)", "other $1$"]
    marks = [line for line in images.lines if line.get_marker() in MARKERS and len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx([10, 20, 30])
    assert [line.get_markerfacecolor() != "white" for line in marks] == [True, True, False]


def test_extremes_show_the_best_other_variant_and_who_is_right(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "extremes")
    titles = [axis.get_title() for axis in figure.axes]
    assert [title.split("\n")[0] for title in titles[:5]] == ["image", "truth", "base", "other $1$", "which is right"]
    assert "by other $1$, of the other variants the one of highest mean mIoU" in caption
    truth, map_ = figure.axes[1].images[0].get_array(), figure.axes[4].images[0].get_array()
    predicted = figure.axes[2].images[0].get_array()  # the same of both variants here
    right = (np.asarray(truth) == np.asarray(predicted)).all(axis=-1)
    patches = zip(figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True)
    shown = {text.get_text(): [round(255 * level) for level in patch.get_facecolor()[:3]] for text, patch in patches}
    assert (np.asarray(map_)[right] == shown["both right"]).all()
    assert (np.asarray(map_)[~right][1:] == shown["both wrong"]).all()  # the first pixel is not labelled
    assert len({tuple(colour) for colour in shown.values()}) == len(shown) >= 6  # no colour with two meanings
    assert [text.get_text()[:6] for text in figure.texts] == ["worst:", "best: "]
