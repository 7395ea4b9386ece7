"""The pages and drawings under docs/architectures/ are those that `make pages` writes now, one an architecture."""

import ast
import re

import pytest
from stored_pages import FOLDER, HEAD, Page, ablations, held_by, paths, scored, stored_field

from lightning_modules.catalogue import ARCHITECTURES

each = pytest.mark.parametrize("name", ARCHITECTURES)


@each
def test_the_stored_page_and_drawing_are_those_of_now(name: str) -> None:
    """The receptive field, which takes seconds, is that of the page."""
    page = Page(name)
    markdown, svg = (path.read_text(encoding="utf-8") for path in paths(name))
    assert markdown == page.markdown(stored_field(name)), "run `make pages`"
    assert svg == page.svg(), "run `make pages`"


@pytest.mark.slow
@each
def test_the_stored_receptive_field_is_that_of_now(name: str) -> None:
    assert stored_field(name) == Page(name).field(), "run `make pages`"


def test_every_architecture_has_its_page_and_no_page_is_left_over() -> None:
    assert {*FOLDER.iterdir()} == {path for name in ARCHITECTURES for path in paths(name)}


def test_a_page_says_what_its_sources_say() -> None:
    text = paths("unet")[0].read_text(encoding="utf-8")
    assert text.startswith(HEAD) and "# U-Net (`unet`)" in text and "](unet.svg)" in text
    assert "[Ronneberger, Fischer, Brox 2015](https://arxiv.org/abs/1505.04597)" in text
    assert "| parameters | 31,030,658 | 31,030,658, [tested]" in text
    assert "| `momentum` | 0.99 |" in text and "| `--model.skips` | concat |" in text
    assert "ablate_upsampling" in text and "@inproceedings{ronneberger2015unet" in text
    departs = text.partition("## Where it departs")[2].partition("## Recipe")[0]
    assert "\n- no dropout;\n" in departs and "\n\nAnd where asked for:\n\n- normalisation;" in departs


def test_the_held_by_an_architecture_are_those_of_its_file_and_those_that_name_it() -> None:
    found = held_by("deeplabv2", "lightning_modules/deeplabv2.py")
    (names,) = (names for path, names in found.items() if path.endswith("test_deeplab.py"))
    text = (FOLDER.parents[1] / "tests/lightning_modules/test_deeplab.py").read_text(encoding="utf-8")
    functions = {node.name: ast.unparse(node) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert 0 < len(names) < sum(name.startswith("test_") for name in functions)
    assert all(re.search(r"DeepLabV2|v2", functions[name]) for name in names)


def test_ablations_and_runs_are_found() -> None:
    assert "ablate_fcn_strides" in {path.stem for path, _ in ablations("fcn", "FCNModule")}
    assert all(said.endswith("?") for _, said in ablations("unet", "UNetModule"))
    row, command = scored()["unet-isbi"]
    assert row[1] == "ISBI EM" and "--model unet --model.padding valid" in command
