"""The table of docs/export.md: which format holds which network; `python tests/experiments/exported.py` writes it.

Each network of the catalogue is built small, exported at one size and with free height and width, and compared with
ours as `experiments.export` does.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.exporting.compared import DiffersError, compare
from experiments.exporting.formats import FORMATS, CannotExportError, FormatName, prepared
from experiments.shell.catalogue import ARCHITECTURES
from lightning_modules import catalogue
from lightning_modules.base import SegmentationModule

PAGE = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- begin table, of tests/experiments/exported.py -->", "<!-- end table -->"
SIZE = (230, 75)  # odd, and on both sides of DeconvNet's window; three others are larger and smaller
# Rows beside those of the catalogue: other settings of an architecture.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet, padding=valid": ("unet", {"padding": "valid"}),
    "unet, padding=valid, tile=64": ("unet", {"padding": "valid", "tile": 64}),
    "crf_as_rnn, crf=conv": ("crf_as_rnn", {"crf": "conv"}),
}
WHY = {
    "crf_as_rnn": "the lattice of a dense CRF is another one for each image, and C++; export the network below it",
    "crf_as_rnn, crf=conv": "its kernel is a Python function, its input checked by value; export the network below it",
    "deconvnet": "images of up to 224 pixels a side are padded to fc6's window, larger ones are not: two graphs",
    "hypercolumn_boxes": "of a side of up to 112 pixels a bin of the 7x7 has one cell, of longer ones more: two graphs",
    "pointrend": "how often the logits are doubled, and which points are predicted anew, follows from the size",
    "unet, padding=valid, tile=64": "the number of tiles follows from the size",
}
NAMES = [*ARCHITECTURES, *VARIANTS]
CASES: list[tuple[FormatName, bool]] = [(format, free) for format in FORMATS for free in (False, True)]


def build(name: str) -> SegmentationModule:
    """The small network of a row, with weights and statistics of which none is zero by default."""
    key, settings = VARIANTS.get(name, (name, {}))
    torch.manual_seed(0)
    module = ARCHITECTURES[key](3, 255, **{**catalogue.ARCHITECTURES[key].small, **settings})
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return module.eval()


def refusal(name: str, format: FormatName, free: bool) -> str:
    """Why the exporter refuses a network; "" where it exports it."""
    module = build(name)
    try:
        exported = FORMATS[format].export(prepared(module), SIZE, free, {"architecture": name})
        compare(module, FORMATS[format].runner(exported.data, 1), SIZE, free, format)
    except (CannotExportError, DiffersError) as error:
        return str(error)
    return ""


def row(name: str, held: list[bool]) -> str:
    cells = ["yes" if one else "no" for one in held]
    return f"| `{name}` | {' | '.join(cells)} | {'' if all(held) else WHY[name]} |"


def found(name: str) -> list[bool]:
    """What holds of a network, in the order of `CASES`; one size is tried where any size fails alone."""
    held = []
    for format in FORMATS:
        said = [refusal(name, format, True)]
        said += [refusal(name, format, False)] if said[0] else [""]
        sys.stderr.writelines(f"{name}: {one}\n" for one in said if one)
        held += [not one for one in reversed(said)]
    return held


def table(rows: dict[str, list[bool]]) -> str:
    titles = [f"{format}, {'any size' if free else 'one size'}" for format, free in CASES]
    head = [f"| network | {' | '.join(titles)} | why not |", f"|---|{':-:|' * len(CASES)}---|"]
    return "\n".join([*head, *(row(name, rows[name]) for name in NAMES)])


def stored() -> dict[str, list[bool]]:
    """What the committed table says of each network, in the order of `CASES`."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^\| `([^`]+)` \| ((?:(?:yes|no) \| )+)(.*) \|$", text, re.MULTILINE)
    assert all(bool(why.strip()) != ("no" not in cells) for _, cells, why in rows)
    return {name: [cell == "yes" for cell in cells.split(" | ")[:-1]] for name, cells, _ in rows}


def write(names: list[str]) -> None:
    """Writes the table with the rows of these networks anew, or of all."""
    new = {name: found(name) for name in names or NAMES}
    rows = {**(stored() if names else {}), **new}
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{table(rows)}\n{END}{text.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(sys.argv[1:])
