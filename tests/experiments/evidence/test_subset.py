"""Some of the variants, and a margin, as a report may be asked for them after the run."""

import json
from pathlib import Path

import pytest
from handmade import write_experiment

from experiments.evidence.experiment import OTHER_IMAGES, Experiment, load_experiment
from experiments.evidence.subset import choose, with_margin
from experiments.shell.files import write_atomic


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    write_experiment(tmp_path)
    return load_experiment(tmp_path)


def test_the_baseline_stays_and_the_family_is_of_those_that_are_left(experiment: Experiment) -> None:
    (chosen,) = choose([experiment], ["nearest+concat"])
    assert list(chosen.plan["variants"]) == list(chosen.cells) == ["transposed-3+concat", "nearest+concat"]
    # One factor is the same for both, and none any longer: there is one comparison and no effect.
    assert chosen.plan["factors"] == {"upsample": ["transposed-3", "nearest"]}
    assert chosen.plan["variants"]["nearest+concat"]["levels"] == {"upsample": "nearest"}
    assert list(chosen.family.rows) == ["nearest+concat"] and chosen.effects == []
    assert len(experiment.family.rows) == 6
    row = chosen.family.rows["nearest+concat"]
    assert (row.low, row.high) == pytest.approx((row.own_low, row.own_high), abs=0.01)  # nothing to correct for
    assert chosen.plan["subset"].startswith("A subset: 2 of 4 variants, chosen after the run.")
    assert "subset" not in experiment.plan and chosen.deviations == experiment.deviations


def test_the_order_and_the_names_of_the_baseline_do_not_matter(experiment: Experiment) -> None:
    names = ["nearest+none", "transposed-3+concat", "transposed-3+none"]
    (chosen,) = choose([experiment], names)
    assert list(chosen.cells) == ["transposed-3+concat", "transposed-3+none", "nearest+none"]
    assert chosen.plan["factors"] == experiment.plan["factors"]


def test_what_is_left_out_is_neither_missing_nor_a_deviation(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    (tmp_path / "nearest+none" / "seed1" / "result.json").unlink()
    path = tmp_path / "transposed-3+none" / "seed1" / "environment.json"
    path.write_text(path.read_text().replace("ab12", "4567def"))
    experiment = load_experiment(tmp_path)
    assert any("4567def" in line for line in experiment.deviations) and len(experiment.missing) == 1
    (chosen,) = choose([experiment], ["nearest+concat"])
    assert chosen.deviations == [] and chosen.missing == []
    (chosen,) = choose([experiment], ["nearest+none", "transposed-3+none"])
    assert len(chosen.deviations) == len(experiment.deviations) and chosen.missing == experiment.missing
    assert not any("nearest+concat" in line for line in chosen.deviations)


def test_other_images_of_a_variant_that_is_left_out_are_no_matter(experiment: Experiment) -> None:
    experiment.cells["nearest+none"][0].image_names.append("c.png")
    experiment.deviations.append(OTHER_IMAGES)
    assert choose([experiment], ["nearest+concat"])[0].deviations == []
    assert choose([experiment], ["nearest+none"])[0].deviations == [OTHER_IMAGES]


def test_fields_of_the_plan_that_name_variants_shrink_along(experiment: Experiment) -> None:
    names = list(experiment.plan["variants"])
    experiment.plan["matched"] = {names[1]: {}, names[2]: {}}
    experiment.plan["tuning"] = {"settings": {}, "trials": {}, "chosen": {name: {} for name in names}}
    plan = choose([experiment], [names[1]])[0].plan
    assert list(plan["matched"]) == [names[1]] and list(plan["tuning"]["chosen"]) == names[:2]


def test_names_are_refused_with_the_nearest_and_the_list(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must name variants \(transposed-3\+concat, .*\), got nearest\+cat; did you mean nearest\+c"
    ):
        choose([experiment], ["nearest+cat"])
    with pytest.raises(ValueError, match=r"compare with its baseline, transposed-3\+concat: name one of nearest\+con"):
        choose([experiment], ["transposed-3+concat"])
    # Of several experiments each keeps those that it has.
    other = tmp_path / "other"
    write_experiment(other)
    plan = json.loads((other / "plan.json").read_text())
    plan["experiment"] = "other"
    plan["variants"]["alone"] = plan["variants"].pop("nearest+none")
    write_atomic(other / "plan.json", json.dumps(plan))
    two = [experiment, load_experiment(other)]
    assert [list(one.cells)[1:] for one in choose(two, ["alone", "nearest+concat", "nearest+none"])] == [
        ["nearest+concat", "nearest+none"],
        ["nearest+concat", "alone"],
    ]


def test_a_margin_that_was_not_planned_is_told(experiment: Experiment) -> None:
    after = with_margin(experiment, 2.5)
    assert after.margin == 2.5 and after.plan["statistics"]["margin_after"] is True
    experiment.plan["statistics"] = {"variances": "separate", "margin": 2.5}
    assert with_margin(experiment, 2.5) is experiment
    assert with_margin(experiment, 3.0).plan["statistics"] == {
        "variances": "separate",
        "margin": 3.0,
        "margin_after": True,
    }
