"""Feeds random broken input to what reads a stranger's files and flags, and counts what is neither read nor refused.

python -m tests.fuzz [--seed 0] [--count 20000] [--only NAME ...] [--first INDEX] [--jobs 2] [--record FILE]

A kind of input is a module of this folder with `NAME` and `one(rng, folder) -> "read" or "refused"`; refused is an
error that the product documents, whose message names the file or the argument. Input i of a kind follows from the seed,
its name and i alone: `--only images --first 17 --count 1` does that one again, and shows the traceback.

Exit status 1 where an input raised anything else, killed its process or took more than a second of processor time.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.harness import SHARES, Tally, available, run, shares

SHOWN = 20  # inputs of a kind of error that are named


def record(path: Path, args: argparse.Namespace, tallies: dict[str, Tally]) -> None:
    """Writes the numbers; kinds that were recorded before with the same seed and commit stay."""
    from experiments.shell.difference import git_commit

    commit, kinds = git_commit(), {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if (before["seed"], before["commit"]) == (args.seed, commit):
            kinds = before["kinds"]
    kinds |= {name: tally.record() for name, tally in tallies.items()}
    count = sum(kind["inputs"] for kind in kinds.values())
    content = {"seed": args.seed, "count": count, "commit": commit, "kinds": kinds}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(tallies: dict[str, Tally]) -> str:
    """The counts by kind, and below them what must not be."""
    lines = [
        f"{'kind':8}{'inputs':>10}{'read':>10}{'refused':>10}{'uncaught':>10}{'slow':>6}{'slowest':>9}{'per s':>8}"
    ]
    for name, tally in tallies.items():
        counts = (
            f"{tally.inputs:>10,}{tally.read:>10,}{tally.refused:>10,}{len(tally.uncaught):>10}{len(tally.slow):>6}"
        )
        lines.append(f"{name:8}{counts}{tally.slowest_s:>8.2f}s{tally.record()['per_s'] or 0:>8.0f}")
    for name, tally in tallies.items():
        for kind, number in Counter(entry["type"] for entry in tally.uncaught).most_common():
            lines.append(f"{name}: {number} x {kind}")
            found = [entry for entry in tally.uncaught if entry["type"] == kind]
            lines += [f"  --only {name} --first {e['index']} --count 1: {e['message']}" for e in found[:SHOWN]]
        for entry in tally.slow[:SHOWN]:
            lines.append(f"{name}: {entry['seconds']} s  --only {name} --first {entry['index']} --count 1")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000, help="inputs of all kinds together")
    parser.add_argument("--only", action="append", choices=list(SHARES), help="this kind; may be given again")
    parser.add_argument("--first", type=int, default=0, help="the index of each kind's first input")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--record", type=Path, help="a JSON file that gets the numbers")
    args = parser.parse_args()
    names = args.only or available()
    if missing := [name for name in names if name not in available()]:
        parser.error(f"this checkout has no tests/fuzz/{missing[0]}.py")
    begin = told = time.monotonic()
    tallies: dict[str, Tally] = {}
    stopped = False
    try:
        for tallies in run(shares(names, args.count), args.seed, args.first, args.jobs):
            if time.monotonic() - told > 10:
                told = time.monotonic()
                done, wrong = sum(t.inputs for t in tallies.values()), sum(len(t.uncaught) for t in tallies.values())
                sys.stderr.write(f"{done:,} of {args.count:,} inputs, {wrong} uncaught, {told - begin:.0f} s\n")
    except KeyboardInterrupt:
        stopped = True
        sys.stderr.write("stopped\n")
    print(table(tallies))
    print(f"{time.monotonic() - begin:.0f} s")
    if args.record and not stopped:
        record(args.record, args, tallies)
    if stopped:
        sys.exit(130)
    sys.exit(any(tally.uncaught or tally.slow for tally in tallies.values()))


if __name__ == "__main__":
    main()
