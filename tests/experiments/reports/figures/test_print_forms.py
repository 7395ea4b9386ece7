"""Figures in print: their widths, letters of 7 to 8 points, nothing cut off, and names that nothing crosses."""

import io
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from drawn import CLASSES, confusions, draw, write_cell, write_experiment, write_plan
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_pdf import RendererPdf
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.reports import figures
from experiments.reports.figures import FIGURES, write_figures
from experiments.reports.figures.forms import COLUMN, PAGE, PRINTED, Form
from experiments.reports.figures.names import boxes, draw_names, find_places
from experiments.reports.figures.pgf import ENGINES

Texts = list[tuple[str, float, Bbox]]  # with its size, and where it lies, in points
Written = dict[tuple[str, str], tuple[bytes, Figure, Texts]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("print")


@pytest.fixture(scope="module")
def printed(experiment: Experiment, folder: Path) -> Written:
    """Each PDF by the name of figure and form, with its figure and the texts that were written into it."""
    drawn = list[tuple[Figure, Texts]]()
    with pytest.MonkeyPatch.context() as patch:
        lay_out, draw_text = figures.lay_out, Text.draw

        def laid_out(figure: Figure, form: Form) -> None:
            lay_out(figure, form)
            drawn.append((figure, []))

        def written(self: Text, renderer: Any) -> None:
            into_pdf = drawn and isinstance(renderer, RendererPdf | MixedModeRenderer)
            if into_pdf and self.get_visible() and self.get_text().strip():
                box = Text.get_window_extent(self, renderer)
                drawn[-1][1].append((self.get_text(), self.get_fontsize(), box))
            draw_text(self, renderer)

        patch.setattr(figures, "lay_out", laid_out)
        patch.setattr(Text, "draw", written)
        pictures = write_figures(experiment, folder)
    assert [name for name in pictures if name != "seeds-narrow"] == list(FIGURES)
    for name, (png, caption) in pictures.items():
        assert png == (folder / "figures" / f"{name}.png").read_bytes() and png.startswith(b"\x89PNG"), name
        assert len(caption) > 100 and "  " not in caption, name
    order = [(name, form) for name in FIGURES for form in ("wide", "column", "page")]
    written_to = {key: folder / "figures" / "print" / f"{'-'.join(key)}.pdf" for key in order}
    return {
        key: (written_to[key].read_bytes(), figure, texts)
        for key, (figure, texts) in zip(order, drawn, strict=True)
        if key[1] != "wide"
    }


def test_each_is_as_wide_as_a_column_or_a_page_and_fits_on_one(printed: Written) -> None:
    assert {name for name, _ in printed} == {*FIGURES} and len(printed) == 2 * len(FIGURES)
    for (name, form), (pdf, _, _) in printed.items():
        (box,) = re.findall(rb"/MediaBox \[ ?([\d. ]+?) ?\]", pdf)
        left, bottom, width, height = map(float, box.split())
        assert (left, bottom, width) == (0, 0, pytest.approx({"column": 3.35, "page": 6.9}[form] * 72)), name
        assert height < 9 * 72, (name, form)


def test_every_letter_is_read(printed: Written) -> None:
    for key, (_, _, texts) in printed.items():
        assert len(texts) > 5 and {size for _, size, _ in texts} <= {7.0, 8.0}, key


def test_fonts_are_embedded_truetype(printed: Written) -> None:
    for key, (pdf, _, _) in printed.items():
        assert b"/Type3" not in pdf and pdf.count(b"/FontFile2") > 0, key
    pdf = printed["seeds", "column"][0]
    data = [zlib.decompress(one) for one in re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", pdf, re.DOTALL)]
    assert [TTFont(io.BytesIO(one)) for one in data if one.startswith(b"\0\1\0\0")]


def test_nothing_is_cut_off_and_no_text_lies_on_another(printed: Written) -> None:
    for key, (_, figure, texts) in printed.items():
        width, height = 72 * figure.get_size_inches()
        lie = [box.padded(-0.5) for _, _, box in texts]
        for number, ((name, _, _), box) in enumerate(zip(texts, lie, strict=True)):
            assert box.x0 > 0 and box.x1 < width and box.y0 > 0 and box.y1 < height, (*key, name)
            on = [texts[other][0] for other in range(number) if box.overlaps(lie[other])]
            assert not on, (*key, name)


@pytest.mark.parametrize("form", PRINTED, ids=lambda form: form.name)
def test_no_bar_no_step_and_no_mark_crosses_a_name_of_pareto(form: Form, experiment: Experiment) -> None:
    figure, _ = draw(experiment, "pareto", form)
    figure.draw_without_rendering()
    assert not figure.legends
    for axis in figure.axes:
        names = [Text.get_window_extent(text) for text in axis.texts]
        assert len(names) == 3
        for line in axis.lines:
            path = line.get_path().transformed(line.get_transform())
            room = line.get_markersize() / 2 * figure.dpi / 72 if line.get_marker() not in ("None", None) else 0
            assert not any(path.intersects_bbox(name.padded(room), filled=False) for name in names)


def test_names_hide_neither_each_other_nor_leave_the_axes() -> None:
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 10))
    points = [(5 + 0.1 * (number % 4), 5 + 0.3 * (number // 4)) for number in range(12)]
    names, bars = [f"a-rather-long-name-{number}" for number in range(12)], [((4.0, 2.0), (4.0, 9.0))]
    places = find_places(axis, points, bars, names, 7.5)
    assert places is not None
    draw_names(axis, points, places, names, ["black"] * 12, 7.5)
    figure.draw_without_rendering()
    drawn = [Text.get_window_extent(text) for text in axis.texts]
    bar = Bbox(axis.transData.transform(bars[0])).padded(1)
    for number, (box, planned) in enumerate(zip(drawn, boxes(places), strict=True)):
        assert axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in drawn[:number]) and not box.overlaps(bar)
        assert abs(box.x0 - planned.x0) < 6 and abs(box.y0 - planned.y0) < 3


def test_names_without_room_have_no_place() -> None:
    figure = Figure(figsize=(1, 1))
    axis = figure.subplots()
    assert find_places(axis, [(0.5, 0.5)], [], ["a name that is wider than the axes"], 7) is None


def test_chosen_figures_alone_are_written_and_others_are_removed(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    (folder / "print").mkdir(parents=True)
    stale = (folder / "curves.png", folder / "scores.pdf", folder / "print" / "curves-page.svg")
    for path in (*stale, folder / "mine.png"):
        path.write_bytes(b"of other cells")
    assert list(write_figures(experiment, tmp_path, chosen=["pareto"], formats=["svg"])) == [
        *("seeds", "seeds-narrow", "pareto"),  # the page shows the first with its answer
    ]
    assert {path.name for path in folder.rglob("*.*")} == {
        *("mine.png", "seeds.png", "seeds-narrow.png", "pareto.png", "pareto-column.svg", "pareto-page.svg")
    }
    assert b"<dc:date>" not in (folder / "print" / "pareto-page.svg").read_bytes()


def test_what_would_be_taller_than_a_page_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"a variant {number}" for number in range(24)]
    for name in names:
        write_cell(tmp_path / name / "seed0", confusions(80))
    write_plan(tmp_path, names, 1, CLASSES)
    monkeypatch.setattr(figures, "FIGURES", {"scores": FIGURES["scores"]})
    write_figures(load_experiment(tmp_path), tmp_path)
    assert [path.name for path in (tmp_path / "figures" / "print").iterdir()] == ["scores-page.pdf"]
    assert figures.too_tall(tmp_path, ["scores"], "pdf") == [
        "Not drawn as wide as a column (3.35 inches), as it would be taller than 9: scores."
    ]


@pytest.mark.skipif(not any(map(shutil.which, ENGINES)), reason="no TeX is installed")
def test_pgf_takes_names_as_text(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path / "x")
    write_figures(experiment, tmp_path, chosen=["confusion"], formats=["pgf"])
    text = (tmp_path / "figures" / "print" / "confusion-column.pgf").read_text(encoding="utf-8")
    assert r"other \$1\$" in text and "confusion-column-img0.png" in text
    assert (tmp_path / "figures" / "print" / "confusion-column-img0.png").read_bytes().startswith(b"\x89PNG")


def test_forms_are_those_of_two_column_papers() -> None:
    assert (COLUMN.width, PAGE.width, COLUMN.narrow, PAGE.narrow) == (3.35, 6.9, True, False)
