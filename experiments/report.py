"""Tables, figures and one offline page from the finished cells of experiments, without training.

    python -m experiments.report outputs/ablate_upsampling
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders --record
    python -m experiments.report outputs/ablate_upsampling --only nearest+concat bilinear+concat --margin 1.0
    python -m experiments.report --list outputs

Writes table.md, table.csv, table.tex, cells.csv, figures/*.png, report.html, methods.md, methods.tex, references.bib,
reproduce.sh, environment.json and, of code that was not committed, code-*.patch. For a paper there are
paper.tex, a whole one of two columns, figures/print/*.pdf, as wide as a column and as a page, and tables/*.tex, *.md
and *.html. They lie in the folder of one experiment, of several in --out, with figures and tables in <experiment>/
there. Folders of the same grid with other seeds are joined into one experiment. Others stand below one another, under a
table of all of them.

--only compares some of the variants with the baseline, and writes into a folder of its own. --record also writes
<experiment>.md, the form in which a finished experiment is committed. What a person wrote into it is kept. --list shows
the question and the answer of every experiment below a folder, and writes nothing.

--archive writes one zip for a review or Zenodo: all of this, the runs without weights, and verify.py, which recomputes
the first table from the zip alone.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from experiments.reports.archive import write_archive
from experiments.reports.cells import MOST_ROWS
from experiments.reports.figures import FIGURES, FORMATS
from experiments.reports.figures.pgf import find_tex
from experiments.reports.listing import print_experiments
from experiments.reports.record import RESULTS, write_record
from experiments.reports.tables.paper import COLUMNS, USUAL
from experiments.reports.write import Printed, collect, write
from experiments.shell.command import command, console
from experiments.shell.ending import of_writing
from experiments.shell.files import slug
from experiments.shell.flags import Parser, refuse
from lightning_modules.components.scores.table import ASKED, SCORES

MOST_LETTERS = 100  # of the name of a folder


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="DIR", help="folders of experiments, such as outputs/ablate_upsampling"
    )
    parser.add_argument(
        *("--list",),
        type=Path,
        nargs="?",
        const=Path("outputs"),
        metavar="DIR",
        help="show all experiments below DIR (default: outputs), the newest first, and write nothing",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="compare these variants alone with the baseline, which stays"
    )
    parser.add_argument(
        "--margin",
        type=_points,
        metavar="POINTS",
        help="say which variants are within this many points of mIoU of the baseline",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the report (default: of one experiment its own, with --only DIR/only-VARIANTS)",
    )
    parser.add_argument(
        *("--record",),
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="DIR",
        help="also write <experiment>.md, to be committed (default DIR: experiments/results)",
    )
    parser.add_argument(
        "--answer", metavar="TEXT_OR_FILE", help="with --record: your sentence that answers, instead of the drafted one"
    )
    parser.add_argument(
        "--cells", action="store_true", help=f"write cells.csv even if it has more than {MOST_ROWS:,} rows"
    )
    parser.add_argument(
        "--pool", action="store_true", help="of three data sets or more: also the mean difference by random effects"
    )
    parser.add_argument(
        "--archive", action="store_true", help="also write one zip for a review, which says how to check its numbers"
    )
    parser.add_argument(
        "--predictions", action="store_true", help="with --archive: the predicted labels of every test image, too"
    )
    parser.add_argument(
        *("--scores",),
        nargs="+",
        choices=(*ASKED, *SCORES),
        metavar="SCORE",
        help=f"further columns of the tables of all scores and seeds (default: none): {', '.join(ASKED)}",
    )
    _add_print(parser)
    args = parser.parse_args()
    if args.list is not None:
        others = [
            *map(str, args.folders),
            *(f"--{k}" for k, v in vars(args).items() if v != parser.get_default(k) and k not in ("list", "folders")),
        ]
        if others:
            refuse(f"--list DIR stands alone: leave out {' '.join(others)}")
        print_experiments(console(), args.list)
        return
    if not args.folders:
        refuse("expected the folder of an experiment, such as outputs/ablate_upsampling; --list shows those there are")
    if args.out is None and len(args.folders) > 1:
        refuse(f"several experiments ({', '.join(map(str, args.folders))}) need --out DIR, the folder of their report")
    if args.answer is not None and args.record is None:
        refuse("--answer is the sentence of a record: add --record")
    if args.predictions and not args.archive:
        refuse("--predictions go into the zip: add --archive")
    if args.pool and len(args.folders) < 2:
        refuse("--pool takes the folders of several experiments, one a data set")
    out = args.out or args.folders[0]
    if args.only:
        if args.record is not None:
            refuse("--record writes what was planned: leave out --only, which was chosen after the run")
        if args.out is None:
            out = args.folders[0] / f"only-{slug('-'.join(args.only))}"
            if len(out.name) > MOST_LETTERS:
                refuse(f"--only {' '.join(args.only)} is too long for the name of a folder: name one with --out DIR")
        elif any(args.out.absolute() == folder.absolute() for folder in args.folders):
            refuse(f"--out {args.out} holds the report of all variants: name another folder for that of --only")
    try:
        report = collect(
            args.folders,
            out,
            only=args.only or (),
            margin=args.margin,
            pooled=args.pool,
            printed=_printed(args),
        )
        write(report, cells=args.cells)
        if args.record is not None:
            path = write_record(report.sections, report.summary, args.record, answer=args.answer)
            console().print(Text(f"record: {path}"), soft_wrap=True)
        if args.archive:
            path = write_archive(out, report.sections, report.places, predictions=args.predictions)
            console().print(Text(f"archive: {path} (python verify.py in it checks its first table)"), soft_wrap=True)
    except PermissionError as error:  # what is read names itself, so this one is of writing
        raise of_writing(error, out) from error


def _add_print(parser: Parser) -> None:
    """What is written for a paper."""
    group = parser.add_argument_group("for a paper", "figures/print and tables; docs/reading-a-report.md has the keys")
    group.add_argument(
        *("--figures",),
        nargs="+",
        choices=tuple(FIGURES),
        metavar="NAME",
        help=f"write these figures alone, and remove the others (default: all): {', '.join(FIGURES)}",
    )
    group.add_argument(
        *("--format",),
        nargs="+",
        choices=tuple(FORMATS),
        default=["pdf"],
        metavar="FORMAT",
        help=f"of the figures for print (default: pdf): {', '.join(FORMATS)}",
    )
    group.add_argument(
        *("--columns",),
        nargs="+",
        choices=tuple(COLUMNS),
        metavar="KEY",
        help=f"of the main table, tables/answer.tex (default: {' '.join(USUAL)}): {', '.join(COLUMNS)}",
    )
    group.add_argument("--transpose", action="store_true", help="give each variant a column of the main table")


def _printed(args: argparse.Namespace) -> Printed:
    if "pgf" in args.format:
        try:
            find_tex()
        except FileNotFoundError as error:
            refuse(str(error))
    return Printed(args.figures, args.format, args.columns or (), args.transpose, _asked(args.scores or ()))


def _asked(scores: Sequence[str]) -> list[str]:
    """Each once, without those that every report has."""
    return [score for score in dict.fromkeys(scores) if score in ASKED]


def _points(text: str) -> float:
    """A margin: a number of percentage points above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"expected a number of percentage points above 0, such as 1.0, got {text!r}")
    return number


if __name__ == "__main__":
    main()
