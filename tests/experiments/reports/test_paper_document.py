"""paper.tex: that every TeX which is installed makes a paper of it, and that it names what lies beside it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from drawn import confusions, write_cell, write_plan

from experiments.evidence.experiment import load_experiment
from experiments.reports import figures
from experiments.reports.figures import FIGURES
from experiments.reports.figures.captions import CAPTIONS, caption
from experiments.reports.figures.forms import PRINTED
from experiments.reports.paper import PARTS
from experiments.reports.tables.paper import COLUMNS
from experiments.reports.write import Printed, collect, write

PLAIN = (["transposed-2", "transposed-3", "nearest", "bilinear"], ["concat", "none"])
HOSTILE = (["a_b 5%", "c&d #1", "{e}$", "it's~f^"], ["x", "y\\z"])
SIGNS = '50 % of "$10^2$" & #1_b* \\{x} <b> it\'s ~é'
DRAWN = ("seeds", "pareto")
ENGINES = ("pdflatex", "xelatex", "lualatex")


def write_crossed(folder: Path, levels: tuple[list[str], list[str]], data: str = "brain", seeds: int = 3) -> Path:
    """8 variants of two factors, the first of three seeds that differ; names and classes are those that are given."""
    names = {f"{first}+{second}": (first, second) for first in levels[0] for second in levels[1]}
    hostile = levels is HOSTILE
    for number, name in enumerate(names):
        for seed in range(seeds):
            write_cell(
                folder / name / f"seed{seed}", confusions(78 + 3 * (number % 4) + (number * seed) % 3), seed=seed
            )
    write_plan(folder, list(names), seeds, [SIGNS, "b", "c"] if hostile else ["a", "b", "c"])
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    plan["factors"] = (
        {"layer #": levels[0], "skip_s": levels[1]} if hostile else {"layer": levels[0], "skips": levels[1]}
    )
    for name, both in names.items():
        plan["variants"][name]["levels"] = dict(zip(plan["factors"], both, strict=True))
    plan |= {"experiment": f"of_{data}", "question": f"Which {SIGNS}?" if hostile else "Which layer is best?"}
    plan |= {"data": data, "common": {"trainer.max_epochs": 2, "module": "lightning_modules.unet.UNetModule"}}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of names that try to break it."""
    place = write_crossed(tmp_path_factory.mktemp("paper") / "x", HOSTILE)
    write(collect([place], place, printed=Printed(figures=DRAWN)))
    return place


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same variants on two data sets, with one figure."""
    place = tmp_path_factory.mktemp("together")
    folders = [write_crossed(place / data, PLAIN, data) for data in ("brain", "shapes")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "FIGURES", {"samples": FIGURES["samples"]})  # without that of the answer
        write(collect(folders, place / "both"))
    return place / "both"


def check_text(folder: Path) -> str:
    """That every file which the paper takes is there, every reference has its label, and braces are balanced."""
    whole = (folder / "paper.tex").read_text(encoding="utf-8")
    left_out = re.findall(r"^% \\\w+\{([^}]+)\}", whole, re.MULTILINE)
    assert left_out and all((folder / name).is_file() for name in left_out)
    text = re.sub(r"^%.*\n", "", whole, flags=re.MULTILINE)
    assert not any(f"{{{name}}}" in text for name in left_out)
    taken = re.findall(r"\\input\{([^}]+)\}|\\includegraphics\{([^}]+)\}", text)
    every = text + "".join((folder / (table or figure)).read_text("utf-8") for table, figure in taken if table)
    assert taken and all((folder / (table or figure)).is_file() for table, figure in taken)
    labels = re.findall(r"\\label\{([^}]+)\}", every)
    assert len(labels) == len({*labels}) and {*re.findall(r"\\ref\{([^}]+)\}", every)} == {*labels}
    keys = {key for keys in re.findall(r"\\cite\{([^}]+)\}", every) for key in keys.split(",")}
    assert keys <= {*re.findall(r"^@\w+\{([^,]+),$", (folder / "references.bib").read_text("utf-8"), re.MULTILINE)}
    bare = re.sub(r"\\[\\{}]|(?<!\\)%.*", "", every)
    assert bare.count("{") == bare.count("}")
    return text


def compile_paper(folder: Path, engine: str, into: Path) -> str:
    """Compiles a copy as the first lines of paper.tex say; returns the log, after a look at what TeX complains of."""
    if shutil.which(engine) is None or subprocess.run(["kpsewhich", "microtype.sty"], check=False).returncode:
        pytest.skip(f"{engine} with microtype is not installed")
    kept = shutil.ignore_patterns("*.png", "*.html", "*.npz", "seed[0-9]")
    shutil.copytree(folder, into, ignore=kept)
    tex = [engine, "-interaction=nonstopmode", "-halt-on-error", "paper"]
    for command in [tex, ["bibtex", "paper"], tex, tex]:
        done = subprocess.run(command, cwd=into, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-1500:].decode(errors="replace")
    log = (into / "paper.log").read_text(encoding="utf-8", errors="replace")
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \((\d[\d.]*)pt", log)]
    assert max(wide, default=0) <= 2, [line for line in log.splitlines() if "Overfull" in line]
    for complaint in ("undefined", "Missing character", "multiply defined", "Float too large"):
        assert complaint not in log, log[max(log.find(complaint) - 200, 0) :][:400]
    return log


@pytest.mark.parametrize("engine", ENGINES)
def test_every_tex_makes_a_paper(engine: str, folder: Path, tmp_path: Path) -> None:
    log = compile_paper(folder, engine, tmp_path / "x")
    pages = re.search(r"Output written on paper\.(?:pdf|xdv) \((\d+) pages", log)
    assert pages and 2 <= int(pages[1]) <= 4
    pdf = tmp_path / "x" / "paper.pdf"
    if shutil.which("pdffonts"):
        lines = subprocess.run(["pdffonts", pdf], capture_output=True, check=True, text=True).stdout.splitlines()[2:]
        assert len(lines) > 5
        for line in lines:
            assert line.split()[-5] == "yes" and "Type 3" not in line, line
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", pdf, "-"], capture_output=True, check=True, text=True, encoding="utf-8")
        words = " ".join(text.stdout.split())
        assert "On brain," in words and "higher than" in words and "References" in words and "??" not in words


def test_it_takes_what_lies_beside_it(folder: Path) -> None:
    text = check_text(folder)
    assert "\\input{tables/answer.tex}" in text and "\\input{tables/factorial.tex}" in text
    for name in DRAWN:
        assert re.search(rf"\\includegraphics\{{figures/print/{name}-(column|page)\.pdf\}}", text), name
    assert "trimap" not in text and text.count("\\begin{abstract}") == 1


def test_several_experiments_are_sections_under_one_table(together: Path, tmp_path: Path) -> None:
    text = check_text(together)
    assert "\\input{tables/summary.tex}" in text and text.count("\\subsection") == 2
    for name in ("of_brain", "of_shapes"):
        assert f"\\input{{{name}/tables/answer.tex}}" in text and f"{{{name}/figures/print/samples-" in text
    compile_paper(together, "pdflatex", tmp_path / "x")


@pytest.mark.parametrize("transpose", [False, True])
def test_a_table_whose_blocks_are_taller_than_a_page_is_left_out(transpose: bool, tmp_path: Path) -> None:
    place = write_crossed(tmp_path / "x", ([f"layer {number}" for number in range(8)], ["concat", "none"]))
    printed = Printed(figures=("seeds",), columns=[*COLUMNS], transpose=transpose)
    write(collect([place], place, printed=printed))
    assert "\n% \\input{tables/answer.tex}" in (place / "paper.tex").read_text(encoding="utf-8")
    assert "tab:of-brain-answer" not in check_text(place)
    compile_paper(place, "pdflatex", tmp_path / "compiled")


def test_without_figures_and_methods_it_is_a_paper_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_crossed(tmp_path / "x", PLAIN, seeds=1)
    monkeypatch.setattr(figures, "FIGURES", {})
    monkeypatch.setattr("experiments.reports.write.PLACE", tmp_path / "none")
    for name in ("methods.tex", "references.bib"):
        (place / name).write_text("of other cells")
    write(collect([place], place))
    text = (place / "paper.tex").read_text(encoding="utf-8")
    assert "includegraphics" not in text and "methods" not in text and "bibliography" not in text
    assert "one seed" in text or "1 seed" in text


def test_every_figure_has_a_place_and_a_short_caption(folder: Path) -> None:
    assert {name for part in PARTS for name in part.figures} == {*FIGURES} == {*CAPTIONS}
    experiment = load_experiment(folder)
    for name in FIGURES:
        for form in PRINTED:
            told = caption(name, experiment, form)
            assert 60 < len(told) < 560 and told.endswith(".") and "  " not in told, told


def test_two_seeds_make_a_paper_that_promises_no_interval(tmp_path: Path) -> None:
    place = write_crossed(tmp_path / "few", PLAIN, seeds=2)
    write(collect([place], place, printed=Printed(figures=("seeds",))))
    paper = (place / "paper.tex").read_text(encoding="utf-8")
    assert "shows every seed and each difference" in paper
    assert "simultaneous" not in (place / "tables" / "factorial.tex").read_text(encoding="utf-8")


def test_who_reads_a_paper_is_not_told_how_to_train(tmp_path: Path) -> None:
    place = write_crossed(tmp_path / "failed", PLAIN)
    write_cell(place / "nearest+none" / "seed0", confusions(1), seed=0)
    write(collect([place], place, printed=Printed(figures=("seeds",))))
    paper = (place / "paper.tex").read_text(encoding="utf-8")
    assert "No better than chance: the accuracy" in paper and "Train longer" not in paper
