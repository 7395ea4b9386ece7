"""Tables for a paper: their columns, one file each, and that every TeX which is installed typesets them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from handmade import write_experiment

from experiments.evidence.experiment import Experiment, load_experiment
from experiments.report import main
from experiments.reports.formats import to_latex as all_tables
from experiments.reports.pasted import in_print, to_html, write_tables
from experiments.reports.tables import Table, make_tables
from experiments.reports.tables.paper import COLUMNS, paper_table
from experiments.reports.tex import escape
from experiments.reports.typeset import HEAD, lay_out, to_latex

HOSTILE = "\"a\" & b_c 5% #1 $x$ {y} ~^\\ 'q' <b> é ß \N{GREEK SMALL LETTER ALPHA} → 字 \N{MINUS SIGN}3 --x `"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("paper")
    write_experiment(folder)
    return load_experiment(folder)


def test_four_columns_by_default_and_a_sentence_on_the_test(experiment: Experiment) -> None:
    table = paper_table(experiment)
    assert table.columns == ["variant", "mIoU (%)", "difference (points)", "GMAC"]
    assert table.rows[0] == ["transposed-3+concat", "82.00 ± 2.00", "baseline", "1.50"]
    assert table.rows[1][2].startswith("+6.00 [1.") and table.rows[1][2].endswith("]*")
    assert table.caption == (
        "Test scores on shapes: mean ± standard deviation over 3 seeds and difference of mIoU to transposed-3+concat."
    )
    family = experiment.family
    family = f"the family of all {experiment.family.judged} comparisons and effects, for other seeds on these images"
    test = "the two-sided max-|t| test (Hothorn et al. 2008)"
    assert table.notes == [
        f"In brackets the simultaneous 95 % interval of {test} of {family} only; *: 0 lies outside.",
        "GMAC: billions of multiply-accumulates in the forward pass of one test image.",
    ]


def test_columns_are_chosen_and_transposed(experiment: Experiment) -> None:
    table = paper_table(experiment, ["parameters", "seeds"])
    assert table.columns == ["variant", "parameters (M)", "seeds"] and table.notes == ["M: millions."]
    assert table.rows[0] == ["transposed-3+concat", "1.25", "3"]
    turned = paper_table(experiment, ["parameters", "seeds"], transpose=True)
    assert turned.columns == ["variant", *(row[0] for row in table.rows)]
    assert turned.rows == [["parameters (M)", *["1.25"] * 4], ["seeds", *["3"] * 4]]
    every = paper_table(experiment, list(COLUMNS))
    assert len(every.columns) == len(COLUMNS) and all(len(row) == len(COLUMNS) for row in every.rows)


def test_in_print_captions_and_feet_are_short_and_say_what_the_numbers_are(experiment: Experiment) -> None:
    others = [table for table in make_tables(experiment)[1:] if table.caption and table.rows]
    printed = {table.key: in_print(table) for table in others}
    for table in printed.values():
        assert len(re.findall(r"[.?!] [A-Z]", table.caption)) == 0 and table.caption.endswith("."), table.caption
        assert all(note.endswith(".") and len(note) < 420 for note in table.notes) and len(table.notes) <= 5, table.key
    words = {key: " ".join([table.caption, *table.notes]) for key, table in printed.items()}
    assert "outlines within 0.75 %" in words["scores"] and "millionths (ppm)" in words["scores"]
    assert "GMAC: billions" in words["cost"] and "A factor of 1" not in words["factors"]
    assert [row[0] for row in printed["factorial"].rows] == [
        "upsample: nearest",
        "skips: none",
        "nearest \N{MULTIPLICATION SIGN} none",
    ]
    assert "against the baseline's (transposed-3, concat)" in words["factorial"]


def test_each_table_is_a_file_and_stale_ones_go(experiment: Experiment, tmp_path: Path) -> None:
    tables = make_tables(experiment)
    (tmp_path / "tables").mkdir()
    for name in ("tuning.tex", "mine.tex"):
        (tmp_path / "tables" / name).write_text("of other cells")
    write_tables(experiment, tables, tmp_path)
    keys = {table.key for table in tables if table.caption and table.rows}
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {f"{key}.{kind}" for key in keys for kind in ("tex", "md", "html")} | {"mine.tex"}
    text = (tmp_path / "tables" / "answer.tex").read_text(encoding="utf-8")
    assert "\\begin{table}\n" in text and "table*" not in text and "resizebox" not in text
    assert "transposed-3+none & 62.0 $\\pm$ 2.0 & $-$20.0 [$-$2" in text and "]$^{*}$ & 1.50" in text
    assert (tmp_path / "tables" / "answer.md").read_text(encoding="utf-8").count("| transposed-3+none |") == 1
    assert "]<sup>*</sup></td>" in (tmp_path / "tables" / "answer.html").read_text(encoding="utf-8")


def test_a_table_takes_the_page_where_a_column_is_too_narrow_and_then_blocks() -> None:
    def wide(count: int) -> Table:
        return Table("x", "X", ["variant", *map(str, range(count))], [["a", *["12.34 ± 0.12"] * count]])

    assert lay_out(wide(3)).star == "" and lay_out(wide(7)).star == "*"
    layout = lay_out(wide(30))
    assert len(layout.blocks) > 1 and all(block[0] == 0 for block in layout.blocks)
    assert [column for block in layout.blocks for column in block[1:]] == [*range(1, 31)]
    assert to_latex(wide(30), "x").count("\\toprule") == len(layout.blocks)


def test_text_is_typeset() -> None:
    assert escape('p of "rank" (-0.5, a-b) 5 %') == "p of ``rank'' ($-$0.5, a-b) 5 \\%"
    assert escape("é ± → 字\u202e") == "\\'{e} $\\pm$ $\\to$ \\ifdefined\\pdftexversion[U+5B57]\\else 字\\fi{}"
    assert escape("a--b") == "a-{}-b" and escape("'q' it's") == "`q' it's"
    assert "&lt;b&gt;" in to_html(Table("x", "X", ["<b>", "n"], [["<b>", "1*"]]))


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex", "lualatex"])
def test_every_tex_typesets_the_tables_and_hostile_names(engine: str, experiment: Experiment, tmp_path: Path) -> None:
    if shutil.which(engine) is None or subprocess.run(["kpsewhich", "booktabs.sty"], check=False).returncode:
        pytest.skip(f"{engine} with booktabs is not installed")
    hostile = Table("h", HOSTILE, ["variant", HOSTILE], [["[x] " + HOSTILE, "-1.0 [-2, -0.5]*"]], notes=[HOSTILE])
    own = [to_latex(table, table.key) for table in make_tables(experiment) if table.rows]
    body = "\n".join([HEAD, to_latex(paper_table(experiment), "answer"), *own, to_latex(hostile, "h")])
    document = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\listoftables\n"
    (tmp_path / "x.tex").write_text(f"{document}{body}\n\\end{{document}}\n", encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    for _ in range(1 if engine == "lualatex" else 2):  # the second reads captions back from the list of tables
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-1500:].decode(errors="replace")
    assert (tmp_path / "x.pdf").stat().st_size > 5000
    assert all_tables([]).startswith("% Written")


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--figures", "pie"], "seeds"), (["--columns", "iou"], "miou"), (["--format", "eps"], "svg")],
)
def test_unknown_names_are_refused_with_the_list(
    flags: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), *flags])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert flags[1] in told and named in told
