"""The sentences that answer: of every kind of experiment, found, excluded, within the margin, and not to be judged."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import change_plan, keep, move, one_factor, plant, save_npz, write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports.answer import answer

LIMITS = "not for other training images, splits or learning rates."
IMAGES_ONLY = f"This holds for other seeds and these images only (their groups were not stored); {LIMITS}"


def sentences(folder: Path) -> list[str]:
    return answer(load_experiment(folder))


@pytest.mark.parametrize(("seeds", "count"), [(1, "1 seed"), (2, "2 seeds")])
def test_with_fewer_than_3_seeds_nothing_is_claimed(seeds: int, count: str, tmp_path: Path) -> None:
    plant(tmp_path, seeds=seeds)
    (only,) = sentences(tmp_path)
    assert only == f"On shapes, {count} cannot tell what other seeds would give: from 3 on there are intervals."


def test_variants_with_stars_come_with_their_intervals_largest_first_and_the_others_with_what_is_excluded(
    tmp_path: Path,
) -> None:
    plant(tmp_path)
    one_factor(tmp_path)
    experiment = load_experiment(tmp_path)
    first, limits = answer(experiment)
    ends = {name: (100 * row.low, 100 * row.high) for name, row in experiment.comparisons.items()}
    (low, high), (low_too, high_too) = ends["nearest+none"], ends["transposed-3+none"]
    assert first.startswith(
        f"On shapes, nearest+none scores 28.0 points of mIoU [{-high:.1f} to {-low:.1f}] lower than "
        f"transposed-3+concat and transposed-3+none scores 20.0 points of mIoU [{-high_too:.1f} to {-low_too:.1f}] "
        "lower than transposed-3+concat; no difference is seen for nearest+concat: "
    )
    excluded = float(first.split("nearest+concat: ")[1].split()[0])
    assert ends["nearest+concat"][1] <= excluded < ends["nearest+concat"][1] + 0.1  # rounded up, never down
    assert re.search(r" or more points higher are excluded, and \d+\.\d or more lower\.$", first)
    assert limits == IMAGES_ONLY


def test_where_no_variant_differs_the_answer_is_what_is_excluded(tmp_path: Path) -> None:
    plant(tmp_path)
    keep(tmp_path, "transposed-3+concat", "nearest+concat")
    one_factor(tmp_path)
    first, _ = sentences(tmp_path)
    assert first.startswith("On shapes, nearest+concat is not seen to differ from transposed-3+concat in mIoU: ")
    plant(tmp_path)
    for seed in range(3):
        move(tmp_path, "transposed-3+none", seed, 200)
        move(tmp_path, "nearest+none", seed, 280)
    one_factor(tmp_path)
    assert "no variant is seen to differ from transposed-3+concat in mIoU: " in sentences(tmp_path)[0]


def test_where_factors_interact_that_is_the_answer(tmp_path: Path) -> None:
    plant(tmp_path)
    first, averaged, _ = sentences(tmp_path)
    # 60, 60 with skips and 40, 32 without: (0 - 8) / 2, (-20 - 28) / 2, and -8 - 0.
    assert first.startswith("On shapes, what one factor does depends on the other: upsample nearest with skips none ")
    assert "scores 8.0 points of mIoU [" in first and first.endswith("less than the two effects sum up to.")
    assert averaged.startswith("On shapes, upsample nearest scores 4.0 points of mIoU [")
    assert "lower than transposed-3 and skips none scores 24.0 points of mIoU [" in averaged
    assert averaged.endswith("lower than concat, averaged over the other factor.")


def test_crossed_factors_that_are_not_seen_to_interact(tmp_path: Path) -> None:
    plant(tmp_path)
    for seed in range(3):
        move(tmp_path, "nearest+none", seed, 80)
    first, together, _ = sentences(tmp_path)
    assert "skips none scores 20.0 points of mIoU [" in first
    assert "; no difference is seen for upsample (nearest against transposed-3): " in first
    assert re.match(
        r"Whether the effects simply add up stays open: two together may give from \d+\.\d points less to \d+\.\d "
        r"points more than their sum\.$",
        together,
    )


def test_a_star_of_a_variant_is_told_where_no_factor_has_one(tmp_path: Path) -> None:
    plant(tmp_path)
    for seed in range(3):  # 60, 60, 60 and 72: half of it in each main effect and in the interaction
        move(tmp_path, "transposed-3+none", seed, 200)
        move(tmp_path, "nearest+none", seed, 400)
    experiment = load_experiment(tmp_path)
    rows = {
        key: replace(row, low=-1.0, high=1.0) if not isinstance(key, str) else row
        for key, row in experiment.family.rows.items()
    }
    object.__setattr__(experiment, "__dict__", experiment.__dict__ | {"family": replace(experiment.family, rows=rows)})
    first, second, *_ = answer(experiment)
    assert first.startswith("On shapes, nearest+none scores 12.0 points of mIoU [")
    assert second.startswith(
        "On shapes, no factor is seen to change the mIoU, averaged over the other factor, neither for "
    )


def test_what_is_not_judged_is_never_called_unseen(tmp_path: Path) -> None:
    plant(tmp_path)
    shutil.rmtree(tmp_path / "nearest+concat" / "seed2")
    first = sentences(tmp_path)[0]
    assert "no factor" not in first and "transposed-3+none scores 20.0 points of mIoU [" in first
    assert first.endswith("not judged: nearest+concat (needs 3 seeds, got 2).")


def test_a_factor_of_three_is_averaged_over_the_others(tmp_path: Path) -> None:
    plant(tmp_path)
    experiment = load_experiment(tmp_path)
    effects = experiment.family  # of the two that there are
    three = replace(experiment, plan=experiment.plan | {"factors": {"skips": [], "upsample": [], "c": []}})
    object.__setattr__(three, "__dict__", three.__dict__ | {"family": effects})
    assert "averaged over the other factors" in answer(three)[1]


def test_factors_that_are_not_crossed_answer_by_their_variants(tmp_path: Path) -> None:
    plant(tmp_path)
    keep(tmp_path, "transposed-3+concat", "nearest+concat", "transposed-3+none")
    first, _ = sentences(tmp_path)
    assert first.startswith("On shapes, transposed-3+none scores 20.0 points of mIoU [")


def test_no_more_than_three_findings_are_listed(tmp_path: Path) -> None:
    plant(tmp_path)
    one_factor(tmp_path)
    experiment = load_experiment(tmp_path)
    cells = dict(experiment.cells)
    variants = dict(experiment.plan["variants"])
    for number in range(3):  # the same cells under other names
        cells[f"again {number}"] = cells["nearest+none"]
        variants[f"again {number}"] = variants["nearest+none"]
    first = answer(replace(experiment, cells=cells, plan=experiment.plan | {"variants": variants}))[0]
    assert first.count(" lower than ") == 3 and " and 2 more; no difference is seen for nearest+concat" in first


@pytest.mark.parametrize(
    ("margin", "said"),
    [
        (2.0, "Within ± 2 points of transposed-3+concat: nearest+concat."),
        (0.5, "No variant is shown to be within ± 0.5 points of transposed-3+concat."),
    ],
)
def test_the_margin_says_which_variants_are_equivalent(margin: float, said: str, tmp_path: Path) -> None:
    plant(tmp_path)
    change_plan(tmp_path, statistics={"variances": "pooled", "margin": margin})
    assert said in sentences(tmp_path)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    plant(tmp_path)
    keep(tmp_path, "transposed-3+concat")
    assert sentences(tmp_path) == ["On shapes, nothing can be compared: there is one variant."]
    write_experiment(tmp_path)
    shutil.rmtree(tmp_path / "transposed-3+concat")
    no_baseline = "On shapes, nothing can be compared yet: no other variant has a seed that transposed-3+concat has."
    assert sentences(tmp_path) == [no_baseline]


def test_values_that_do_not_vary_have_no_interval(tmp_path: Path) -> None:
    plant(tmp_path)
    for path in tmp_path.glob("*/seed*/per_image.npz"):
        first = path.parent.parent / "seed0" / "per_image.npz"
        if path != first:
            path.write_bytes(first.read_bytes())
    assert sentences(tmp_path) == ["On shapes, no difference can be judged: the seeds do not vary."]


def test_without_data_of_a_name_the_sentence_begins_with_here(tmp_path: Path) -> None:
    plant(tmp_path)
    change_plan(tmp_path, data="")
    assert sentences(tmp_path)[0].startswith("Here, ")


def holds_for(experiment: Experiment) -> str:
    return answer(experiment)[-1]


def test_the_last_sentence_says_which_images_it_holds_for(tmp_path: Path) -> None:
    plant(tmp_path, groups=8)
    assert holds_for(load_experiment(tmp_path)) == (
        f"This holds for other seeds and other images of the same kind; {LIMITS}"
    )
    plant(tmp_path, groups=7)
    assert (
        "these images only (7 independent images or groups of images, and 8 are needed to speak of others); "
        in holds_for(load_experiment(tmp_path))
    )
    plant(tmp_path, groups=8)
    path = tmp_path / "nearest+none" / "seed1" / "per_image.npz"
    with np.load(path) as stored:
        save_npz(path, **{key: array for key, array in stored.items() if key != "groups"})
    assert "these images only (cells differ in their groups of images); " in holds_for(load_experiment(tmp_path))
