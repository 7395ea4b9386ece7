"""Tables, figures and one offline page from the finished cells of experiments, without training.

    python -m experiments.report outputs/ablate_upsampling
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders
    python -m experiments.report outputs/ablate_decoder outputs/ablate_decoder_camvid --out outputs/decoders --record

Writes table.md, table.csv, table.tex, figures/*.png, figures/*.pdf, report.html, reproduce.sh, environment.json and, of
code that was not committed, code-*.patch: of one experiment into its folder, of several into --out, with the figures in
<experiment>/figures there. Folders of the
same grid with other seeds are joined into one experiment. Others stand below one another, under a table of all of them.
--record also writes <experiment>.md, the form in which a finished experiment is committed. What a person wrote into it
is kept.
"""

from pathlib import Path

from rich.text import Text

from experiments.reports.record import RESULTS, write_record
from experiments.reports.write import collect, write
from experiments.shell.command import command, console
from experiments.shell.ending import of_writing
from experiments.shell.flags import Parser, refuse


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="folders of experiments, such as outputs/ablate_upsampling"
    )
    parser.add_argument("--out", type=Path, help="folder of the report of several experiments (of one: its own folder)")
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
    args = parser.parse_args()
    if args.out is None and len(args.folders) > 1:
        refuse(f"several experiments ({', '.join(map(str, args.folders))}) need --out DIR, the folder of their report")
    if args.answer is not None and args.record is None:
        refuse("--answer is the sentence of a record: add --record")
    try:
        report = collect(args.folders, args.out or args.folders[0])
        write(report)
        if args.record is not None:
            path = write_record(report.sections, report.summary, args.record, answer=args.answer)
            console().print(Text(f"record: {path}"), soft_wrap=True)
    except PermissionError as error:  # what is read names itself, so this one is of writing
        raise of_writing(error, args.out or args.folders[0]) from error


if __name__ == "__main__":
    main()
