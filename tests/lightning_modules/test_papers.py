"""The table of papers: its numbers are those of the networks, and the documents say the same."""

import re
from pathlib import Path

import pytest
import torch

from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.papers import PAPERS

ROOT = Path(__file__).parents[2]
COUNTED = [name for name, paper in PAPERS.items() if paper.parameters is not None]


def test_papers_are_of_architectures() -> None:
    assert PAPERS.keys() <= ARCHITECTURES.keys() and len(COUNTED) >= 10


@pytest.mark.parametrize("name", COUNTED)
def test_a_network_with_these_settings_has_as_many_parameters(name: str) -> None:
    paper = PAPERS[name]
    with torch.device("meta"):
        module = ARCHITECTURES[name].module(paper.num_classes, -1, in_channels=paper.in_channels, **paper.settings)
    assert sum(p.numel() for p in module.parameters()) == paper.parameters


def test_the_readme_says_the_same() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE))
    assert rows.keys() == ARCHITECTURES.keys()
    for name, cell in rows.items():
        told = re.fullmatch(r"([\d,]+) \((\d+)\)", cell)
        paper = PAPERS.get(name)
        if paper is None or paper.parameters is None:
            assert told is None, name
        else:
            assert told is not None and cell == f"{paper.parameters:,} ({paper.num_classes})", name


def test_the_page_of_architectures_says_the_same() -> None:
    text = (ROOT / "docs/architectures.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(architectures/\1\.md\) \| .* \| ([^|]+) \|$", text, re.MULTILINE))
    for name, paper in PAPERS.items():
        if paper.parameters is not None:
            assert f"{paper.parameters:,}" in rows[name] and f"({paper.num_classes}" in rows[name], name
