"""No setting of the user's changes a figure: not a matplotlibrc, not a style sheet, not a backend."""

import ast
import io
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from drawn import write_experiment
from fontTools.subset import Options
from fontTools.ttLib import TTFont

from experiments.evidence.experiment import load_experiment
from experiments.reports.figures import (
    FIGURES,
    colormap,
    drawing,
    lay_out,
    missing_figures,
    plain_fonts,
    save_figure,
    write_figures,
)
from experiments.reports.figures.forms import WIDE
from experiments.reports.figures.looks import UNREAD
from experiments.tracking.process import confusion_image

FEW = ("scores", "logits")  # lines and text, and maps of colours
KINDS = (*FEW, "pareto", "confusion", "samples")  # names beside points, numbers in cells, pictures
ROOT = Path(__file__).parents[4]
HOSTILE = {
    "text.usetex": "True",
    "figure.dpi": "33",
    "savefig.dpi": "44",
    "savefig.bbox": "tight",
    "savefig.transparent": "True",
    "font.family": "nonexistent",
    "axes.prop_cycle": "cycler('color', ['r'])",
    "axes.facecolor": "black",
    "axes.xmargin": "0.3",
    "axes.unicode_minus": "False",
    "image.cmap": "jet",
    "image.lut": "3",
    "image.interpolation": "bicubic",
    "lines.linewidth": "9",
    "path.sketch": "3, 100, 2",
    "pdf.compression": "0",
    "xtick.direction": "in",
    "legend.fontsize": "30",
}


def python_files() -> Iterator[Path]:
    for package in ("experiments", "lightning_modules", "datamodules"):
        # tracking/process.py is a process of its own, whose settings of matplotlib are nobody else's.
        yield from (path for path in (ROOT / package).rglob("*.py") if path.name != "process.py")


def misplaced(path: Path, source: str) -> list[str]:
    """What a file does outside `drawing` that belongs into it: draws, saves, or touches the settings of matplotlib."""
    inside_figures = path.parent.name == "figures"  # what `write_figures` calls within the context
    found = []

    def visit(node: ast.AST, drawing: bool) -> None:
        if isinstance(node, ast.With):
            drawing |= any(ast.unparse(item.context_expr).startswith("drawing(") for item in node.items)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            shown = name == "Image" and any("figure" in ast.unparse(argument) for argument in node.args)
            if not drawing and (name in ("save_figure", "draw") or shown or (name == "Figure" and not inside_figures)):
                found.append(f"{path.name}:{node.lineno} {name} outside of drawing()")
        if path.name not in ("looks.py", "pgf.py") and isinstance(node, ast.Attribute | ast.Name | ast.alias):
            word = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name"}[type(node)]
            last = str(getattr(node, word)).split(".")[-1]
            if last in ("pyplot", "rcParams", "rc_context", "rcdefaults", "savefig", "colormaps", "get_cmap"):
                found.append(f"{path.name}:{node.lineno} {last}")
        for child in ast.iter_child_nodes(node):
            visit(child, drawing)

    visit(ast.parse(source), False)
    return found


def test_nobody_draws_but_within_drawing() -> None:
    drawers = {path.name for path in python_files() if "with drawing(" in path.read_text(encoding="utf-8")}
    assert drawers == {"__init__.py", "explain.py", "outcome.py", "show.py", "soft_segment.py"}
    assert [line for path in python_files() for line in misplaced(path, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt",
        "from matplotlib import pyplot",
        "figure.savefig(path)",
        "with matplotlib.rc_context(STYLE): pass",
        "figure = Figure()",
        "with drawing():\n    figure = Figure()\nsave_figure(figure, path, {})",
        "wandb.Image(figure, caption='x')",
        "matplotlib.colormaps['gray']",
    ],
)
def test_the_test_before_sees_what_is_amiss(source: str) -> None:
    assert misplaced(Path("some.py"), source)
    assert not misplaced(Path("some.py"), "with drawing():\n    save_figure(Figure(), path, {})")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawing") / "x"
    write_experiment(folder, seeds=2)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return drawn(folder, tmp_path_factory.mktemp("plain"))


def drawn(folder: Path, out: Path) -> dict[str, bytes]:
    write_figures(load_experiment(folder), out, chosen=KINDS)
    return {path.name: path.read_bytes() for path in sorted((out / "figures").rglob("*.*"))}


def test_settings_and_styles_of_the_session_change_no_byte_and_stay(
    folder: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    with matplotlib.rc_context():
        matplotlib.style.use(["dark_background", "ggplot"])
        matplotlib.rcParams.update(HOSTILE)
        before = dict(matplotlib.rcParams)
        assert drawn(folder, tmp_path) == plain
        assert dict(matplotlib.rcParams) == before


def test_a_figure_that_is_laid_out_first_is_saved_as_one_that_is_not(folder: Path, tmp_path: Path) -> None:
    experiment = load_experiment(folder)
    names = FIGURES.keys() - missing_figures(experiment).keys()
    assert len(names) > 10
    for name in names:
        saved = []
        for prepare in (lay_out, lambda figure: None):
            with drawing():
                figure, _ = FIGURES[name][0](experiment, WIDE)
                prepare(figure)
                saved.append(save_figure(figure, tmp_path / "x.png", {}))
        assert saved[0] == saved[1], name


def test_the_fonts_of_a_pdf_hold_letters_and_no_table_that_nobody_reads(plain: dict[str, bytes]) -> None:
    for name in [name for name in plain if name.endswith(".pdf")]:
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", plain[name], re.DOTALL)
        data = [zlib.decompress(stream) for stream in streams if stream.startswith(b"x")]
        fonts = [TTFont(io.BytesIO(font)) for font in data if font.startswith(b"\0\1\0\0")]
        assert fonts and any(b"beginbfchar" in one or b"beginbfrange" in one for one in data), name  # text stays text
        for font in fonts:
            assert font["maxp"].numGlyphs > 2 and not {*UNREAD} & {*font.keys()}, name


def test_fonts_are_cut_down_as_ever_elsewhere() -> None:
    before = list(Options()._drop_tables_default)
    with pytest.raises(KeyError), plain_fonts():
        assert {*UNREAD} <= {*Options().drop_tables}
        raise KeyError
    assert before == Options()._drop_tables_default and not {*UNREAD} & {*Options().drop_tables}


def test_the_panel_of_a_logger_depends_on_no_setting() -> None:
    confusion = np.array([[5, 1], [0, 3]])
    one = np.asarray(confusion_image(confusion, ["$a", "b"]).image)
    with matplotlib.rc_context({"figure.dpi": 33, "savefig.bbox": "tight", "axes.facecolor": "black"}):
        assert np.array_equal(np.asarray(confusion_image(confusion, ["$a", "b"]).image), one)
    assert len(colormap("gray")(np.linspace(0, 1, 256))) == 256


@pytest.mark.parametrize(
    "place",
    ["environment", *(pytest.param(name, marks=pytest.mark.slow) for name in ("working folder", "home", "no text"))],
)
def test_a_matplotlibrc_and_a_backend_change_no_byte_of_a_report(
    place: str, folder: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    rc, environment = tmp_path / "matplotlibrc", {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "nonsense"}
    hostile = "".join(f"{name}: {value}\n" for name, value in HOSTILE.items())
    if place == "working folder":
        rc.write_text(f"{hostile}a line that is none\nlines.linewidth: thick\n", encoding="utf-8")
        environment["MPLBACKEND"] = "tkagg"
    elif place == "home":
        (tmp_path / "home" / "matplotlib").mkdir(parents=True)
        (tmp_path / "home" / "matplotlib" / "matplotlibrc").write_text(hostile, encoding="utf-8")
        environment |= {"XDG_CONFIG_HOME": str(tmp_path / "home"), "MPLBACKEND": "module://no.such"}
    elif place == "no text":
        (tmp_path / "rc").write_bytes(b"\xff\xfe text.usetex: True")
        environment["MATPLOTLIBRC"] = str(tmp_path / "rc")
    else:
        (tmp_path / "rc").write_text(hostile, encoding="utf-8")
        environment["MATPLOTLIBRC"] = str(tmp_path / "rc")
    code = (
        "import sys; from pathlib import Path; from experiments.reports import figures; from "
        "experiments.evidence.experiment import load_experiment; "
        f"figures.FIGURES = {{name: figures.FIGURES[name] for name in {FEW}}}; "
        "figures.write_figures(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "figures").rglob("*.*")}
    assert written == {name: data for name, data in plain.items() if re.split(r"[.-]", name)[0] in FEW} != {}
