"""paper.tex: a report as a paper of two columns, made of the files that lie beside it."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.reports.figures.captions import caption
from experiments.reports.figures.forms import COLUMN, PAGE, Form
from experiments.reports.methods import methods, shortened
from experiments.reports.page import Section
from experiments.reports.tables import Table
from experiments.reports.tex import escape
from experiments.reports.typeset import label_of
from experiments.shell.citation import key_of
from lightning_modules.components.scores.table import PER_IMAGE

MOST_ROWS = 44  # of a table that a page holds with its caption and notes
MOST_INCHES = 8.2  # of a figure, likewise
TALL = 4.6  # inches: a figure that is taller in its form for a column stands across both columns instead
USUAL = ("seeds", "samples")  # figures of a paper of three pages, where none were chosen

# What a paper has not, and what is said to who trains.
ELSEWHERE = re.compile(r'; the others are listed below| The table "Spread" has each\.| Train longer, raise .*')

HEAD = r"""% Written by python -m experiments.report. A PDF of it, in this folder (xelatex and lualatex do as well):
%   pdflatex paper && bibtex paper && pdflatex paper && pdflatex paper
\documentclass[10pt,twocolumn]{article}
\usepackage[letterpaper,textwidth=6.95in,textheight=9.2in,columnsep=0.25in]{geometry} % columns of 3.35 inches
\usepackage{booktabs,graphicx,url}
\usepackage[expansion=false]{microtype} % which needs no more than the fonts of every TeX
\usepackage[font=small,labelfont=bf]{caption}
\ifdefined\pdftexversion % signs that it would otherwise take from a font of pixels
\DeclareTextSymbol{\textdollar}{OT1}{36}\DeclareTextCommand{\textasciigrave}{OT1}{\`{}}
\fi
\emergencystretch=2em
\raggedbottom
\makeatletter % paragraphs with a heading lie as close as those of a paper
\renewcommand{\paragraph}{\@startsection{paragraph}{4}{\z@}{1ex plus 0.3ex}{-1em}{\normalfont\normalsize\bfseries}}
\makeatother
\renewcommand{\topfraction}{0.9}
\renewcommand{\dbltopfraction}{0.9}
\renewcommand{\bottomfraction}{0.6}
\renewcommand{\textfraction}{0.08}
\renewcommand{\floatpagefraction}{0.7}
\renewcommand{\dblfloatpagefraction}{0.9}
\setcounter{topnumber}{3}
\setcounter{totalnumber}{4}
\setcounter{dbltopnumber}{3}
"""


@dataclass(frozen=True)
class Part:
    """A paragraph of the results: its tables and figures, by their keys, and what each is said to show."""

    title: str
    tables: dict[str, str]
    figures: dict[str, str]


PARTS = (
    Part(
        "",
        {"answer": "gives the mIoU of each variant and its difference to the baseline"},
        {"seeds": "shows every seed and the interval of each difference", "scores": "shows every score"},
    ),
    Part("Effects", {"factorial": "says what each factor does, and whether two of them add up"}, {}),
    Part("All scores", {"scores": "has the other scores"}, {"curves": "shows how the training went"}),
    Part("Cost", {}, {"pareto": "sets score against cost"}),
    Part(
        "Where the predictions err",
        {},
        {
            "classes": "compares the variants class by class",
            "trimap": "does so near true boundaries",
            "confusion": "shows which classes are taken for which",
            "errors": "divides the errors by their kind",
            "calibration": "compares confidence and accuracy",
            "coverage": "shows how few errors the surest pixels have",
            "samples": "shows predictions",
            "extremes": "shows the worst and the best images",
            "logits": "shows the logits",
        },
    ),
)


def to_latex(
    sections: Sequence[Section],
    places: Sequence[Path],
    out: Path,
    summary: Table | None = None,
    chosen: Collection[str] | None = None,
) -> str:
    """The whole document, of the tables, figures and methods that are written below `out`.

    `places` holds the folder of tables and figures of each section, `chosen` the figures that were asked for.
    """
    results = [
        [*_results(section, place, place.relative_to(out), chosen)]
        for section, place in zip(sections, places, strict=True)
    ]
    body = [
        HEAD,
        "\\begin{document}",
        _title(sections),
        "\\suppressfloats[t] % none above the abstract",
        _abstract(sections),
    ]
    if not summary and results[0]:  # in time for the top of a page: a float across both columns comes on the next
        text, floats = results[0][0]
        body, results[0][0] = body + floats, (text, [])
    cited = (out / "methods.tex").is_file() and (out / "references.bib").is_file()
    if cited:
        body += ["\\section{Methods}", "\\input{methods.tex}"]
    body.append("\\section{Results}")
    if summary:
        body += ["Table~\\ref{tab:summary} has the variants of all experiments.", "\\input{tables/summary.tex}"]
    for section, paragraphs in zip(sections, results, strict=True):
        body += [f"\\subsection{{{escape(section.experiment.plan['experiment'])}}}"] * bool(summary)
        body += [line for text, floats in paragraphs for line in (text, *floats)]
    if cited:
        named = _named(places, "\n".join(body))
        body += [f"\\nocite{{{','.join(named)}}} % papers that the tables name"] * bool(named)
        body += ["{\\footnotesize\n\\bibliographystyle{plain}\n\\bibliography{references}\n}"]
    body.append("\\end{document}")
    taken = "\n".join(body)
    others = [line for place in places for line in _files(place, place.relative_to(out)) if line not in taken]
    body += ["% What else there is:\n" + "\n".join(f"% {line}" for line in others)] * bool(others)
    return "\n\n".join(body) + "\n"


def _named(places: Sequence[Path], taken: str) -> list[str]:
    """Keys of the papers of the scores whose meaning stands below a table that is taken."""
    files = [file for place in places for file in sorted((place / "tables").glob("*.tex"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if f"/{file.name}}}" in taken)
    return [
        key_of(score.cited)
        for score in PER_IMAGE.values()
        if score.cited and any(n.brief and escape(n.brief)[1:40] in text for n in score.numbers.values())
    ]


def _files(place: Path, beside: Path) -> Iterator[str]:
    """What takes each table and figure that was written."""
    for kind, folder, ending in (("input", "tables", "tex"), ("includegraphics", "figures/print", "pdf")):
        for file in sorted((place / folder).glob(f"*.{ending}")):
            yield f"\\{kind}{{{(beside / folder / file.name).as_posix()}}}"


def _title(sections: Sequence[Section]) -> str:
    """The question, where there is one, across both columns."""
    questions = list(dict.fromkeys(section.experiment.plan["question"] for section in sections))
    names = ", ".join(section.experiment.plan["experiment"] for section in sections)
    title = escape(questions[0] if len(questions) == 1 else names)
    return f"\\twocolumn[\\begin{{center}}\\LARGE {title}\\end{{center}}\\bigskip]"


def _abstract(sections: Sequence[Section]) -> str:
    """The answer to each, whom it holds for, and what a reader must know before the first number, but for what the
    methods say."""
    lines = []
    for section in sections:
        holds = section.answer[-1:] if len(section.answer) > 1 else ()
        said = " ".join(text for _, text in methods(section.experiment))
        warned = [ELSEWHERE.sub("", warning) for warning in section.warnings if shortened(warning) not in said]
        brackets = ["In brackets: 95 % intervals."] * ("[" in section.headline)
        lines.append(escape(" ".join([section.headline, *brackets, *holds, *warned])))
    return "\n\n".join(["\\begin{abstract}\\noindent", *lines, "\\end{abstract}"])


def _results(
    section: Section, place: Path, beside: Path, chosen: Collection[str] | None
) -> Iterator[tuple[str, list[str]]]:
    """Each paragraph with its floats: what is alone in its part has no heading, and those stand together."""
    label = label_of(section.experiment.plan["experiment"])
    wanted = USUAL if chosen is None else chosen
    alone, headed = (list[str](), list[str]()), list[tuple[str, list[str]]]()
    for part in PARTS:
        said, floats = list[str](), list[str]()
        for key, shows in part.tables.items():
            if 0 < _rows(place / "tables" / f"{key}.tex") <= MOST_ROWS:
                said.append(f"Table~\\ref{{tab:{label}-{key}}} {shows}")
                floats.append(f"\\input{{{(beside / 'tables' / f'{key}.tex').as_posix()}}}")
        for name, shows in part.figures.items():
            form = _form(place, name) if name in wanted else None
            if form is not None:
                told = shows if section.experiment.family.judged else shows.replace("the interval of ", "")
                said.append(f"Figure~\\ref{{fig:{label}-{name}}} {told}")
                floats.append(_figure(section, name, form, beside, label))
        if said and not part.title:
            yield " ".join(filter(None, [f"{_and(said)}.", escape(" ".join(section.answer[1:-1]))])), floats
        elif len(said) > 1:
            headed.append((f"\\paragraph{{{part.title}.}} {_and(said)}.", floats))
        else:
            alone[0].extend(f"{one}." for one in said)
            alone[1].extend(floats)
    if alone[0]:
        yield " ".join(alone[0]), alone[1]
    yield from headed


def _rows(path: Path) -> int:
    """Of a table, those of its blocks together, and as many as the head of a further block takes; 0 without a table."""
    if not path.is_file():
        return 0
    _, *blocks = path.read_text(encoding="utf-8").split("\\midrule\n")
    return sum(block.partition("\\bottomrule")[0].count("\n") for block in blocks) + 4 * (len(blocks) - 1)


def _form(place: Path, name: str) -> Form | None:
    """That for a column, where it is not too tall; None where neither was drawn or fits a page."""
    heights = {form: _height(place / "figures" / "print" / f"{name}-{form.name}.pdf") for form in (COLUMN, PAGE)}
    return next((form for form, most in ((COLUMN, TALL), (PAGE, MOST_INCHES)) if 0 < heights[form] <= most), None)


def _height(path: Path) -> float:
    """Of a figure in inches; 0 where there is none."""
    found = (
        re.search(rb"/MediaBox \[ ?[\d.]+ [\d.]+ [\d.]+ ([\d.]+) ?\]", path.read_bytes()) if path.is_file() else None
    )
    return float(found[1]) / 72 if found else 0.0


def _figure(section: Section, name: str, form: Form, beside: Path, label: str) -> str:
    star = "" if form.narrow else "*"
    file = (beside / "figures" / "print" / f"{name}-{form.name}.pdf").as_posix()
    return (
        f"\\begin{{figure{star}}}\n\\centering\n\\includegraphics{{{file}}}\n"
        f"\\caption{{{escape(caption(name, section.experiment, form))}}}\n"
        f"\\label{{fig:{label}-{name}}}\n\\end{{figure{star}}}"
    )


def _and(clauses: Sequence[str]) -> str:
    return " and ".join([", ".join(clauses[:-1]), clauses[-1]] if len(clauses) > 1 else clauses)
