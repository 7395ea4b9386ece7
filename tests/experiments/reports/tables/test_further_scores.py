"""Scores beside mIoU: in the tables of a report, by flag, in the columns of a paper's table, and in its references."""

from pathlib import Path

import numpy as np
import pytest
from drawn import draw, write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.report import main
from experiments.reports.methods import cited, methods
from experiments.reports.tables import Table, make_tables
from experiments.reports.tables.paper import COLUMNS, paper_table
from lightning_modules.components.scores.table import ASKED, PER_IMAGE, numbers


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return write_experiment(tmp_path)


def table(experiment: Experiment, key: str, *asked: str) -> Table:
    return next(one for one in make_tables(experiment, asked) if one.key == key)


def test_outlines_stand_beside_boundary_f1(experiment: Experiment) -> None:
    scores = table(experiment, "scores")
    names = ["mIoU (%)", "boundary F1 (%)", "boundary IoU (%)", "NSD at 2 px (%)", "checkerboard energy (ppm)"]
    assert scores.columns == ["variant", "seeds", *names, "pixel accuracy (%)"]
    # 6, 7 and 8 of 10 pixels, by seed; every outline of every image 75 %.
    assert scores.rows[0][4:6] == ["70.00 ± 10.00", "75.00 ± 0.00"]
    assert len(table(experiment, "seeds").rows[0]) == len(table(experiment, "seeds").columns)


def test_further_scores_are_shown_if_they_are_asked_for(experiment: Experiment) -> None:
    scores = table(experiment, "scores", "image_miou", "fwiou")
    assert scores.columns[-2:] == ["mIoU per image (%)", "frequency-weighted IoU (%)"]
    assert scores.rows[0][-2] == "62.50 ± 0.00" and ASKED["image_miou"].meaning in scores.notes
    seeds = table(experiment, "seeds", "image_miou", "fwiou")
    assert seeds.columns[-4:-2] == scores.columns[-2:] and seeds.rows[0][-4] == "62.50"
    assert all("per image" not in column for column in table(experiment, "scores").columns)


def test_every_score_can_be_a_column_of_a_paper(experiment: Experiment) -> None:
    assert COLUMNS.keys() >= numbers().keys()
    made = paper_table(experiment, ["miou", "boundary_iou", "nsd_5", "class_miou"], digits=1)
    assert made.rows[0] == ["base", *made.rows[0][1:2], "70.0 ± 10.0", "75.0 ± 0.0", "62.5 ± 0.0"]


def test_the_iou_of_segments_by_their_size(experiment: Experiment) -> None:
    sizes = table(experiment, "sizes")
    assert sizes.rows[0][2:] == ["25.00 ± 0.00", "75.00 ± 0.00", "-"]
    assert "Small, medium and large: 32, 16 and 0 true segments" in sizes.notes[0]
    assert sizes.columns[2] == "IoU of small segments, below 0.33 % of the image (%)"


def test_the_wrong_ones_among_the_surest(experiment: Experiment) -> None:
    errors = table(experiment, "errors")
    place = errors.columns.index("wrong of the surest 90 % (%)")
    # Of 300 sure pixels 10, 11 and 12 are wrong, of 100 others 40: 34, 35 and 36 of 360.
    assert errors.rows[0][place] == f"{100 * 35 / 360:.2f} ± {100 / 360:.2f}"


def test_risk_over_coverage_is_drawn_with_the_difference_to_the_baseline(experiment: Experiment) -> None:
    figure, caption = draw(experiment, "coverage")
    left, right = figure.axes
    assert len(left.lines) == 3 and len(right.lines) == 3  # on the right, the baseline is the line at 0
    risks = left.lines[0].get_ydata()
    assert risks[[14, 17, 19]] == pytest.approx(100 * np.array([11 / 300, 35 / 360, 51 / 400]))  # at 75, 90 and 100 %
    assert right.lines[1].get_ydata() == pytest.approx(np.zeros(20), abs=1e-12)
    assert "Geifman" in caption


def test_papers_of_the_scores_are_in_the_references(experiment: Experiment) -> None:
    text = dict(methods(experiment))["Scores"]
    assert all(PER_IMAGE[name].cited in text for name in ("boundary_f1", "boundary_iou", "surface"))
    assert {score.cited for score in PER_IMAGE.values() if score.cited} <= {*cited([experiment])}


def test_cells_of_earlier_versions_have_dashes_and_say_why(experiment: Experiment, tmp_path: Path) -> None:
    for path in tmp_path.rglob("per_image.npz"):
        with np.load(path) as stored:
            kept = {key: stored[key] for key in stored if key not in ("boundary_iou", "surface", "sizes", "coverage")}
        np.savez(path, **kept)  # type: ignore[arg-type]
    earlier = load_experiment(tmp_path)
    scores = table(earlier, "scores", "nsd_1")
    assert scores.rows[0][4:6] == ["-", "-"] and scores.rows[0][-1] == "-"
    assert "an earlier version trained: boundary IoU, NSD at 2 px, NSD at 1 px." in scores.notes[-1]
    assert not table(earlier, "sizes").rows
    assert "boundary IoU" not in dict(methods(earlier))["Scores"]


def test_where_not_all_seeds_stored_a_score_the_tables_say_so(experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "base" / "seed0" / "per_image.npz"
    with np.load(path) as stored:
        kept = {key: stored[key] for key in stored if key not in ("boundary_iou", "sizes", "coverage")}
    np.savez(path, **kept)  # type: ignore[arg-type]
    mixed = load_experiment(tmp_path)
    for key, title in (
        ("scores", "boundary IoU"),
        ("sizes", "IoU of small segments"),
        ("errors", "wrong of the surest"),
    ):
        made = table(mixed, key)
        told = [note for note in made.notes if note.startswith("Of fewer seeds than the column says")]
        assert len(told) == 1 and title in told[0] and told[0] in (made.foot or ()), key
        assert not any("Of fewer seeds" in note for note in table(experiment, key).notes)


def test_the_flag_reaches_every_form_and_refuses_other_names(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--scores", "miuo"])
    with pytest.raises(SystemExit):
        main()
    assert "--scores: invalid choice: 'miuo'" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv", ["report", str(tmp_path), "--scores", "class_miou", "nsd_2", "class_miou", "--figures", "coverage"]
    )
    main()
    for name in ("table.md", "report.html", "tables/scores.tex"):
        assert "then over the classes" in (tmp_path / name).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "print" / "coverage-column.pdf").is_file()
    assert (tmp_path / "tables" / "scores.md").read_text(encoding="utf-8").count("mIoU per class and image (%)") == 1
    head = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"image_miou_percent_mean", "nsd_5_percent_std", "iou_small_percent_mean", "aurc_percent_mean"} <= {*head}


def test_the_worst_image_of_one_variant_is_not_shown_as_worst_and_as_best(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    for path in [*tmp_path.glob("*/seed*/samples.npz")][::2]:  # half of the cells rank the two images the other way
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **arrays | {"kinds": np.array(["fixed best", "worst"])})
    kinds = [{*picture.kinds} - {"fixed"} for picture in load_experiment(tmp_path).pictures]
    assert sorted(map(sorted, kinds)) == [["best"], ["worst"]]


def test_a_paper_says_how_large_a_small_segment_is_and_that_nothing_was_measured(experiment: Experiment) -> None:
    notes = " ".join(paper_table(experiment, ["miou", "iou_small", "iou_large", "energy"]).notes)
    assert (
        "IoU of small segments: mean of the adjusted IoU (Chan et al. 2021) of the true ones, each below 0.33 %"
        in notes
    )
    assert "each 3 % and more of the image" in notes and "Energy: not measured" in notes


def test_no_interval_is_spoken_of_where_there_is_none(tmp_path: Path) -> None:
    few = write_experiment(tmp_path, seeds=2)
    notes = " ".join(paper_table(few, ["miou", "difference", "p"]).notes)
    assert "No interval" in notes and "same test" not in notes


@pytest.mark.parametrize(("count", "said"), [(1, "One of them was built"), (2, "2 of them were built")])
def test_one_matched_arm_is_one(experiment: Experiment, count: int, said: str) -> None:
    experiment.plan["matched"] = {str(arm): {"of": "parameters", "ratio": 1.002} for arm in range(count)}
    assert said in " ".join(text for _, text in methods(experiment))
