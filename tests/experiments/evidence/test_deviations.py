"""What makes finished cells less comparable than planned, of plans and cells made by hand."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from experiments.evidence.deviations import deviations, other_settings, planned, statements

PLAN: dict[str, Any] = {
    "baseline": "a",
    "seeds": [0, 1],
    "commit": "c1",
    "common": {"trainer.max_epochs": 2, "hparams.lr": 0.1, "data.root": "there"},
    "variants": {
        "a": {"levels": {"width": 4}, "parameters": 100, "gmac": 1.0},
        "b": {"levels": {"width": 8}, "parameters": 111, "gmac": 1.36},
    },
}


NEW = {
    "budget": {"a": {"steps": 6}, "b": {"steps": 6}},
    "differences": {"a": {}, "b": {"hparams.width": [4, 8]}},
}


MACHINE = {"processor": "EPYC", "instruction_set": "AVX512", "blas": "MKL"}


@dataclass
class Finished:
    """What deviations looks at in a cell that is stored."""

    variant: str
    seed: int
    run: dict[str, Any] = field(
        default_factory=lambda: {"hparams": {"lr": 0.1}, "data": {"root": "here"}, "trainer": {}}
    )
    result: dict[str, Any] = field(default_factory=lambda: {"epochs": 2, "steps": 6})
    image_names: list[str] = field(default_factory=lambda: ["1.png", "2.png"])
    groups: list[str] | None = field(default_factory=lambda: ["g", "h"])
    environment: dict[str, Any] = field(
        default_factory=lambda: {"commit": "c1", "device": "1 x CPU", "versions": {"x": "1"}, **MACHINE}
    )


def cells(**changed: Any) -> dict[str, dict[int, Any]]:
    """Both variants with both seeds, `changed` of b's second one."""
    found = {name: {seed: Finished(name, seed) for seed in (0, 1)} for name in ("a", "b")}
    for key, value in changed.items():
        getattr(found["b"][1], key).update(value)
    return found


def test_cells_whose_memory_ran_out_are_named_with_what_it_changes() -> None:
    said = "The memory of the device ran out, so that each step accumulated"
    assert deviations(PLAN | NEW, cells(result={"accumulated": 4})) == [
        f"{said} 4 parts: b seed 1. The batch is the same, and its loss is the mean over them."
    ]
    found = cells(result={"accumulated": 4, "norm_batch": 1})
    for seed in (0, 1):
        found["a"][seed].result.update({"accumulated": 2, "norm_batch": 3})
    assert deviations(PLAN | NEW, found) == [
        f"{said} 2 parts: a seeds 0, 1. Their batch norm saw 3 images at a time, which can change scores.",
        f"{said} 4 parts: b seed 1. Their batch norm saw 1 image at a time, which can change scores.",
    ]


def test_cells_that_did_what_was_planned_deviate_in_nothing() -> None:
    assert deviations(PLAN | NEW, cells()) == []
    old = cells()
    for of_variant in old.values():
        for cell in of_variant.values():
            del cell.result["steps"]
    assert deviations(PLAN, old) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"result": {"steps": 5}}, "b seed 1 deviates from the plan: 5 steps, planned 6."),
        ({"result": {"params": 1200}}, "b seed 1 deviates from the plan: 1,200 parameters, planned 111."),
        (
            {"environment": {"commit": "c2"}},
            (
                "Cells were trained with different commit (c1: a seeds 0, 1, b seed 0; c2: b seed 1): last digits may "
                "differ."
            ),
        ),
        (
            {"environment": {"patch": "ab" * 32}},
            "different commit (c1: a seeds 0, 1, b seed 0; c1 with code-abababababab.patch: b seed 1)",
        ),
        (
            {"environment": {"instruction_set": "AVX2"}},
            "different processor (EPYC, AVX512: a seeds 0, 1, b seed 0; EPYC, AVX2: b seed 1): last digits may differ.",
        ),
        (
            {"environment": {"processor": "Xeon"}},
            "different processor (EPYC, AVX512: a seeds 0, 1, b seed 0; Xeon, AVX",
        ),
        ({"environment": {"blas": "MKL 2025"}}, "different blas (MKL: a seeds 0, 1, b seed 0; MKL 2025: b seed 1)"),
        ({"environment": {"versions": {"x": "2"}}}, "different versions (x 1: a seeds 0, 1, b seed 0; x 2: b seed 1)"),
        (
            {"environment": {"device": "2 x CPU"}},
            "different device (1 x CPU: a seeds 0, 1, b seed 0; 2 x CPU: b seed 1)",
        ),
    ],
)
def test_a_cell_that_did_something_else_is_named(changed: dict[str, Any], said: str) -> None:
    found = deviations(PLAN | NEW, cells(**changed))
    assert len(found) == 1
    assert said in found[0]


def test_of_a_machine_that_was_not_stored_nothing_is_said_to_differ() -> None:
    found = cells()
    for key in MACHINE:
        del found["b"][1].environment[key]
    assert deviations(PLAN | NEW, found) == []


def test_the_settings_of_a_cell_are_compared_with_those_planned_for_its_variant() -> None:
    assert other_settings(PLAN, "b", {"hparams": {"lr": 0.1, "width": 8}, "data": {"root": "elsewhere"}}) == []
    found = other_settings(PLAN, "b", {"hparams": {"lr": 0.2, "width": 4, "init_from": "x.ckpt"}})
    assert found == ["hparams.lr 0.2, planned 0.1", "hparams.width 4, planned 8"]


def test_conditions_that_go_along_with_the_variants_are_said_to_be_confounded() -> None:
    found = cells()
    for cell in found["b"].values():
        cell.environment["commit"] = "c2"
    assert "no variant was trained under more than one" in deviations(PLAN | NEW, found)[0]
    for cell in found["a"].values():
        cell.environment["commit"] = "c2"
    assert deviations(PLAN | NEW, found) == ["The cells were trained at commit c2, the plan was written at c1."]


def test_missing_seeds_are_named_where_variants_have_unequal_ones() -> None:
    found = cells()
    del found["b"][1]
    assert deviations(PLAN | NEW, found)[0].startswith("Not every variant has the seeds 0, 1: b lacks seed 1.")
    del found["a"][1]
    assert deviations(PLAN | NEW, found) == []  # fewer than planned, but the same


def test_epochs_stand_in_for_steps_that_were_not_stored() -> None:
    found = cells(result={"epochs": 1})
    del found["b"][1].result["steps"]
    assert deviations(PLAN, found) == ["b seed 1 deviates from the plan: 1 epoch, planned 2."]


def test_a_plan_of_an_earlier_version_still_says_its_sizes() -> None:
    sizes = "parameters 100 to 111 (0 % to +11 %); GMAC of a test image 1 to 1.36 (0 % to +36 %)"
    warning = "Between variants of unequal size, a difference in score can be one of size."
    assert statements(PLAN) == [f"Sizes, and how far from those of a: {sizes}. {warning}"]
    assert planned(PLAN, "b")["hparams.width"] == 8


def test_cells_that_name_other_groups_of_images_are_named() -> None:
    found = cells()
    found["b"][1].groups = None
    (said,) = deviations(PLAN | NEW, found)
    assert said == (
        "Cells do not name the same groups of test images (none in b seed 1): every interval is for these images only."
    )
    found["b"][0].groups = ["g", "g"]
    assert "(others in b seed 0; none in b seed 1)" in deviations(PLAN | NEW, found)[0]
    for of_variant in found.values():
        for cell in of_variant.values():
            cell.groups = None  # of an earlier version: the tables say so
    assert deviations(PLAN | NEW, found) == []
    found["a"][0].image_names, found["a"][0].groups = ["3.png"], ["g"]  # which is said elsewhere
    assert deviations(PLAN | NEW, found) == []
