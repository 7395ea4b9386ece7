import re
from pathlib import Path

import pytest
import yaml

from experiments.explain import main
from experiments.shell.citation import PLACE, bibtex, entry, key
from lightning_modules.papers import PAPERS

REFERENCES = yaml.safe_load(PLACE.read_text(encoding="utf-8"))["references"]


@pytest.mark.parametrize("name", PAPERS)
def test_every_architecture_has_an_entry(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--bibtex"])
    text = capsys.readouterr().out
    assert re.match(r"@(inproceedings|article|misc)\{[a-z]+20\d\d[a-z]+,\n", text) and text.endswith("\n}\n")
    assert text.count("{") == text.count("}") and PAPERS[name].cited.split("/")[-1] in text
    kind = text.split("{")[0]
    assert {"@inproceedings": "booktitle", "@article": "journal", "@misc": "title"}[kind] in text


def test_an_entry_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    main(["unet", "--bibtex"])
    assert capsys.readouterr().out == (
        "@inproceedings{ronneberger2015unet,\n"
        "  title         = {{U-Net: Convolutional Networks for Biomedical Image Segmentation}},\n"
        "  author        = {Ronneberger, Olaf and Fischer, Philipp and Brox, Thomas},\n"
        "  booktitle     = {Medical Image Computing and Computer-Assisted Intervention (MICCAI)},\n"
        "  year          = {2015},\n"
        "  doi           = {10.1007/978-3-319-24574-4_28},\n"
        "}\n"
    )


def test_keys_are_plain_and_unique() -> None:
    keys = [key(reference) for reference in REFERENCES]
    assert len({*keys}) == len(keys) and all(re.fullmatch("[a-z]+[0-9]{4}[a-z]+", one) for one in keys)
    assert "krahenbuhl2011efficient" in keys


def test_a_group_is_no_person() -> None:
    authors = [{"name": "Brain Cooperative Group"}]
    text = entry({"type": "article", "title": "On a Brain", "authors": authors, "year": 2011})
    assert text.startswith("@article{braincooperativegroup2011brain,") and "{{Brain Cooperative Group}}" in text


@pytest.mark.parametrize(("count", "named"), [(10, 10), (11, 6)])
def test_of_many_authors_the_first_six_are_named(count: int, named: int) -> None:
    authors = [{"family-names": f"Family{number}", "given-names": "A."} for number in range(count)]
    text = entry({"type": "article", "title": "T", "authors": authors, "year": 2021})
    assert text.count("Family") == named and ("and others}" in text) == (named < count)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold the reference 10\.1/none"):
        bibtex("10.1/none")
    with pytest.raises(ValueError, match="work in a checkout"):
        bibtex("10.1/none", tmp_path / "CITATION.cff")
