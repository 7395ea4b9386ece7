"""Writes the table of docs/prediction.md: of which networks tiles are exact. `python tests/.../tiled.py`"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from lightning_modules.analysis.tiling import NotLocalError, reach
from lightning_modules.analysis.tracer import Tracer
from lightning_modules.catalogue import ARCHITECTURES

PAGE = ROOT / "docs" / "prediction.md"
BEGIN, END = "<!-- tiles -->", "<!-- end of tiles -->"
# What a flag makes of an architecture whose paper's network is not local, or another one.
ALSO = {
    "deeplabv3": {"image_pooling": False},
    "deeplabv3plus": {"image_pooling": False},
    "unet": {"norm": "group"},
}


def row(name: str, **settings: object) -> str:
    """A line of the table, of the paper's network with `settings`."""
    with torch.device("meta"), Tracer():  # some encoders compute with constants in their constructors
        module = ARCHITECTURES[name].module(21, 255, in_channels=3, **settings)
    flags = "".join(f" `--model.{key} {str(value).lower()}`" for key, value in settings.items())
    try:
        found = reach(module.eval(), 3)
        return f"| `{name}`{flags} | exact | {found.halo} | {found.step} |"
    except NotLocalError as error:
        return f"| `{name}`{flags} | blended: {error} | | |"


def table() -> str:
    rows = [
        row(name, **settings) for name in ARCHITECTURES for settings in ({}, ALSO.get(name)) if settings is not None
    ]
    return "\n".join(["| network | tiles | halo (pixels) | step |", "|---|---|---:|---:|", *rows])


def committed() -> str:
    """The table as it stands in the page."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
