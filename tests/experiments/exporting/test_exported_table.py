"""What the table of docs/export.md says of each network and format is so."""

import pytest
from exported import CASES, NAMES, PAGE, VARIANTS, WHY, refusal, stored

# Whose pt2 takes many seconds, and is left to the complete set, which asks every statement.
LONG = {
    *("pspnet", "deeplabv2", "deeplabv3", "deeplabv3plus", "pointrend", "smp"),
    *("crf_as_rnn, crf=conv", "unet, padding=valid, tile=64"),
}


def test_the_table_has_a_row_for_every_network() -> None:
    assert [*stored()] == NAMES, f"run python tests/experiments/exported.py, which writes the table of {PAGE.name}"
    assert {*WHY} == {name for name, held in stored().items() if not all(held)}


def test_the_classic_networks_are_free_in_every_format() -> None:
    for name in ("unet", "fcn", "segnet", "deeplabv1", "deeplabv2", "deeplabv3", "deeplabv3plus", "pspnet"):
        assert all(stored()[name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_torch_formats_hold_what_the_table_says(name: str) -> None:
    """At any size where that holds, as one size does then, too; else at both."""
    for format in ("torchscript",) if name in LONG else ("torchscript", "pt2"):
        one, free = (stored()[name][CASES.index((format, sizes))] for sizes in (False, True))
        assert (refusal(name, format, True) == "") == free, (format, "any size")
        if not free:
            assert (refusal(name, format, False) == "") == one, (format, "one size")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.extra("export", "onnx", "onnxruntime", "onnxscript")
@pytest.mark.parametrize("name", ["unet", "deeplabv1"])
def test_onnx_holds_what_the_table_says(name: str) -> None:
    assert (refusal(name, "onnx", True) == "") == stored()[name][CASES.index(("onnx", True))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.extra("export", "onnx", "onnxruntime", "onnxscript")
@pytest.mark.parametrize(("format", "free"), CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_statement_of_the_table(name: str, format: str, free: bool) -> None:
    said = refusal(name, format, free)  # type: ignore[arg-type]
    assert (said == "") == stored()[name][CASES.index((format, free))], said  # type: ignore[arg-type]


def test_the_variants_are_of_known_networks() -> None:
    assert {key for key, _ in VARIANTS.values()} <= {*NAMES}
