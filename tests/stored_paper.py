"""docs/paper-1.png and on, the pages of the paper that a report writes: `python tests/stored_paper.py DIR`.

DIR holds the stored cells of an experiment, say outputs/ablate_upsampling, and is not written into.
Needs TeX and pdftoppm.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from experiments.reports.write import collect, write

COMMANDS = ("pdflatex -interaction=nonstopmode -halt-on-error paper", "bibtex paper")
DPI, COLOURS = 100, 128


def main(folder: Path) -> None:
    tex, bibtex = (command.split() for command in COMMANDS)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        write(collect([folder], out))
        for command in (tex, bibtex, tex, tex, ["pdftoppm", "-r", str(DPI), "-png", "paper.pdf", "page"]):
            subprocess.run(command, cwd=out, check=True, stdout=subprocess.DEVNULL)
        for stale in (ROOT / "docs").glob("paper-*.png"):
            stale.unlink()
        for number, page in enumerate(sorted(out.glob("page-*.png")), start=1):
            with Image.open(page) as picture:
                few = picture.convert("RGB").quantize(COLOURS)  # a page takes a third of the bytes
                few.save(ROOT / "docs" / f"paper-{number}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
