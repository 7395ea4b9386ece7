"""Simulated reports: their stars err as often as they may. Large numbers of them are `experiments.simulate_designs`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments import simulate_designs
from experiments.evidence.blocks import LEVEL, Blocks, least_p, level_of
from experiments.evidence.family import judge
from experiments.simulate_designs import (
    ALIKE,
    DIVERGING,
    Setting,
    contrasts,
    screen,
    share_stopping,
    share_until,
    share_wrong,
    simulate,
    suspect,
    to_markdown,
)

REPORTS = 400


def bound(share: float, reports: int = REPORTS) -> float:
    """That a share of so many reports stays below but once in a thousand times."""
    return share + 3.1 * math.sqrt(share * (1 - share) / reports)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(8, 3, 2, 16),
        Setting(24, 3, 2, 16),
        Setting(8, 10, 2, 16),
        Setting(8, 3, 12, 100, "seeds"),
        Setting(8, 3, 12, 100, "both"),
        Setting(8, 3, 12, 100, "images"),
        Setting(8, 3, 8, 100, "images", ratio=ALIKE),
        Setting(2, 3, 12, 100, "seeds"),
        Setting(8, 3, 2, 16, separate=True),
    ],
    ids=str,
)
def test_false_stars_are_as_rare_as_they_may_be(setting: Setting) -> None:
    assert share_wrong(setting, REPORTS, 0) < bound(0.05)


@pytest.mark.parametrize(
    ("spread", "floor"), [("one variant", 0.90), ("half of them", 0.90), ("baseline", 0.87), (DIVERGING, 0.87)]
)
def test_of_unequal_spreads_coverage_stays_above_its_floor(spread: str, floor: float) -> None:
    assert share_wrong(Setting(8, 3, 2, 16, "seeds", spread), REPORTS, 0) < bound(1 - floor)


def test_one_difference_of_five_points_has_its_star_in_six_of_ten_reports() -> None:
    """4 x 2 variants, 14 contrasts, 3 seeds, a standard deviation of 1.7 points."""
    setting = Setting(8, 3, 1, 1)
    design = setting.design()
    assert isinstance(design, Blocks) and len(design.contrasts) == 14
    scores = np.random.default_rng(0).standard_normal((20_000, 8, 3))
    scores[:, 3] += 5 / 1.7
    values = scores.reshape(len(scores), -1)
    errors = design.errors(design.variance(values), design.df)
    level = level_of(least_p(design, 1.0, design.df))
    assert (errors.p(values @ design.weights.T)[:, 2] < level).mean() >= 0.6


def test_contrasts_are_comparisons_main_effects_and_interactions() -> None:
    assert contrasts([2, 2]).tolist() == [
        [-1, 1, 0, 0],
        [-1, 0, 1, 0],
        [-1, 0, 0, 1],
        [-0.5, -0.5, 0.5, 0.5],
        [-0.5, 0.5, -0.5, 0.5],
        [1, -1, -1, 1],
    ]
    assert len(contrasts([4, 3, 2])) == 23 + 6 + 11 and np.allclose(contrasts([4, 3, 2]).sum(axis=1), 0)


def test_drawn_scores_have_the_variances_that_they_are_to_have() -> None:
    setting = Setting(2, 4, 12, 100, "both")
    drawn = list(simulate(setting, 20_000, np.random.default_rng(0)))
    scores = np.concatenate([one for one, _ in drawn]).reshape(-1, 2, 4)
    of_seeds = (scores[:, 1] - scores[:, 0]).var(axis=1, ddof=1).mean() / 2
    of_images = (scores[:, 1] - scores[:, 0]).mean(axis=1).var() / 2 - of_seeds / 4
    assert of_seeds == pytest.approx(1, rel=0.03) and of_images == pytest.approx(1 / 4, rel=0.1)
    assert setting.sizes.sum() == 100 and setting.sizes.max() / setting.sizes.min() > 4


def test_seeds_that_are_added_until_a_star_shows_make_more_of_them_false() -> None:
    assert share_stopping(8, (3, 3), REPORTS, 0) < bound(0.05)
    assert share_stopping(8, (3, 6), REPORTS, 0) > 0.08


def test_seeds_that_stage_one_asks_for_do_not() -> None:
    wrong, seeds = share_until(8, 1.5, REPORTS, 0)
    assert wrong < bound(0.05) and 5 < seeds < 20


def draw_matrices(generator: np.random.Generator, groups: int, each: int) -> NDArray[np.int64]:
    """Of 3 variants and 3 seeds, images that err together in their groups: (3, 3, n, 3, 3)."""
    common = generator.normal(scale=0.4, size=(3, 1, groups, 1)).repeat(each, axis=2)
    own = generator.normal(scale=0.1, size=(3, 3, groups * each, 1))
    trained = generator.normal(scale=0.05, size=(3, 3, 1, 1))
    share = 1 / (1 + np.exp(-(1.5 + common + own + trained)))[..., None]
    size = generator.uniform(200, 400, size=(groups * each, 1, 1))
    means = size * (share * np.eye(3) + (1 - share) / 2 * (1 - np.eye(3)))
    return generator.poisson(means)


def test_groups_hold_for_the_mean_iou_where_single_images_do_not() -> None:
    """Groups are drawn anew for each report, and no variant differs."""
    generator, reports, names = np.random.default_rng(0), 200, ["a", "b", "c"]
    weights = {name: {name: 1.0, "a": -1.0} for name in names[1:]}
    wrong = {"groups": 0, "images": 0}
    for _ in range(reports):
        matrices = draw_matrices(generator, 10, 4)
        cells = {name: dict(enumerate(of_one)) for name, of_one in zip(names, matrices, strict=True)}
        for kind, each in (("groups", 4), ("images", 1)):
            groups = [str(image // each) for image in range(40)]
            family = judge(cells, weights, groups=groups, draws=400)
            wrong[kind] += any(row.star for row in family.rows.values())
    assert wrong["groups"] / reports < bound(0.05, reports)
    assert wrong["images"] / reports > 0.15


def test_a_class_in_six_groups_spoils_no_interval() -> None:
    generator, reports, names = np.random.default_rng(1), 200, ["a", "b", "c"]
    weights, wrong = {name: {name: 1.0, "a": -1.0} for name in names[1:]}, 0
    for _ in range(reports):
        matrices = draw_matrices(generator, 10, 4)
        matrices[:, :, :16, 2] = matrices[:, :, :16, :, 2] = 0  # nor predicted there
        cells = {name: dict(enumerate(of_one)) for name, of_one in zip(names, matrices, strict=True)}
        family = judge(cells, weights, groups=[str(image // 4) for image in range(40)], draws=400)
        assert not family.reason
        wrong += any(row.star for row in family.rows.values())
    assert wrong / reports < bound(0.05, reports)


def test_the_screen_has_each_cell_once_and_what_the_document_promises() -> None:
    cells = screen()
    assert len(set(cells)) == len(cells)
    assert {8, 24} <= {cell.variants for cell in cells} and {3, 10} <= {cell.seeds for cell in cells}
    assert {6, 60} <= {cell.groups for cell in cells} and {16, 500} <= {cell.images for cell in cells}
    assert suspect(0.061, 2_000) and not suspect(0.059, 2_000)


def test_a_simulation_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [Setting(8, 3, 2, 16), Setting(8, 4, 2, 16)]
    monkeypatch.setattr(simulate_designs, "SCREEN", 50)
    monkeypatch.setattr(simulate_designs, "added", lambda: None)
    monkeypatch.setattr("sys.argv", ["simulate_designs", "--out", str(tmp_path)])
    monkeypatch.setattr(simulate_designs, "screen", lambda: cells[:1])
    simulate_designs.main()
    path = tmp_path / "designs.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["cells"][0]["wrong"] = 0.125
    path.write_text(json.dumps(stored), encoding="utf-8")
    monkeypatch.setattr(simulate_designs, "screen", lambda: cells)
    simulate_designs.main()
    after = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(after) == 2 and after[0]["wrong"] == 0.125
    assert "8 variants, 3 seeds, 2 groups of 16 images" in capsys.readouterr().out


def test_the_document_says_what_was_simulated() -> None:
    """Each cell that was repeated is judged by its 20,000 reports."""
    stored = json.loads((Path(__file__).parents[2] / "docs" / "designs.json").read_text(encoding="utf-8"))["cells"]
    known = {Setting(**row["setting"]): row for row in stored}
    assert set(screen()) == set(known)
    document = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert all(table in document for table in to_markdown(stored))
    for setting, row in known.items():
        if setting.spread == "equal":
            limit = 0.055 if row["reports"] == 20_000 else LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 2_000)
            assert row["wrong"] <= limit, setting
