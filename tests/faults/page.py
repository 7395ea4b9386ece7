"""docs/RELIABILITY.md, written from what a run of `python -m tests.faults` has recorded beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOW = "never by hand: `make full` writes it, `python -m tests.faults` shows the same without writing"


def beside(path: Path) -> Path:
    """Where the recorded data of a page lie."""
    return path.with_name(f"{path.stem.lower()}.json")


def write(found: Mapping[str, Any]) -> str:
    """The page of what was found."""
    faults, attacks, kills, fuzz = (found[part] for part in ("faults", "attacks", "kills", "fuzz"))
    times = sum(one["kills"] for one in kills)
    equal = [one for one in kills if not one["wrong"]]
    bounded, broken = [f for f in faults if not f["wrong"]], [a for a in attacks if a["wrong"]]
    skipped = [one for one in (*faults, *attacks) if one["skipped"]]
    lines = [
        "# What happens when something goes wrong",
        "",
        (
            "**Promised:** a fault ends in one line that names the file or flag and the way out, with the status of "
            "[exit-codes.md](exit-codes.md), within a minute, with no process left and no file half-written; "
            "`--resume` then goes on, and ends bit for bit as a run that nothing interrupted (on the CPU). Files of "
            "strangers run no code and write nothing outside their folder: [SECURITY.md](../SECURITY.md)."
        ),
        "",
        (
            f"**Seen:** {len(bounded)} of {len(faults)} faults bounded and named, {len(broken)} of {len(attacks)} "
            f"attacks succeed, {sum(one['kills'] for one in equal)} of {times} kills bit-equal{_fuzz_in_short(fuzz)}."
            + (f" {len(skipped)} could not be brought about there, and say why." if skipped else "")
        ),
        "",
        (
            f"`{found['command']}` at commit `{found['commit'][:12]}` on {found['machine']}; {HOW}. Each line is a "
            "process of its own with a time limit, on a very small U-Net, and says what a person sees. *Real* ones "
            "start an interpreter; the others are forked from a process that has imported the project, and run the "
            "same module. After each: no traceback, no process after 15 s, every checkpoint sound, metrics.csv in "
            "order, every JSON whole, no temporary file, nothing written elsewhere."
        ),
        "",
        "## Faults",
        "",
        (
            "Seconds are those of the command that met the fault, its own work included. The first 30 numbers are of a "
            "table of what training frameworks do wrong."
        ),
        "",
        "| | fault | what it does to you | exit status | seconds | real | how it ended |",
        "|---:|---|---|---:|---:|---|---|",
        *(
            f"| {f['number']} | {_cell(f['name'])} | {_cell(f['does'])} | {_status(f)} | {f['seconds']:.1f} | "
            f"{'real' if f['real'] else ''} | {_ended(f)} |"
            for f in faults
        ),
        "",
        "## Attacks",
        "",
        "| | what a stranger gives | what it does | exit status | seconds | how it ended |",
        "|---:|---|---|---:|---:|---|",
        *(
            f"| {number} | {_cell(a['name'])} | {_cell(a['does'])} | {_status(a)} | {a['seconds']:.1f} | {_ended(a)} |"
            for number, a in enumerate(attacks, start=1)
        ),
        "",
        "## Kills",
        "",
        (
            "Each training was killed (SIGKILL) at random moments, continued each time, and compared with one that was "
            "not: weights, optimiser, schedule, metrics.csv, result.json, per-image scores, samples and predictions, "
            "bit for bit but for seconds. After each kill every checkpoint was sound, metrics.csv in order, and within "
            "15 s no process left."
        ),
        "",
        "| training | kills | of them while it ran | step of the checkpoint after each | bit-equal |",
        "|---|---:|---:|---|---|",
        *(
            f"| {_cell(k['name'])} | {k['kills']} | {k['met']} | {', '.join(map(str, k['steps']))} | "
            f"{'no: ' + _cell(k['wrong']) if k['wrong'] else 'yes'} |"
            for k in kills
        ),
        "",
        *_fuzz(fuzz),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _fuzz_in_short(fuzz: Mapping[str, Any] | None) -> str:
    if fuzz is None:
        return ""
    kinds = fuzz["kinds"].values()
    uncaught, slow = (sum(len(kind[part]) for kind in kinds) for part in ("uncaught", "slow"))
    return (
        f", {sum(kind['inputs'] for kind in kinds):,} random inputs with {uncaught} unnamed errors and {slow} slow ones"
    )


def _fuzz(fuzz: Mapping[str, Any] | None) -> Sequence[str]:
    if fuzz is None:
        return ["## Random inputs", "", "Not part of this run: `make fuzz`."]
    return [
        "## Random inputs",
        "",
        (
            f"`python -m tests.fuzz --seed {fuzz['seed']} --count {fuzz['count']}` at commit `{fuzz['commit'][:12]}`: "
            "files and values that are broken at random are read, or refused with an error that names them."
        ),
        "",
        "| kind | inputs | read | refused | unnamed errors | slow | slowest, s | a second |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {_cell(name)} | {k['inputs']:,} | {k['read']:,} | {k['refused']:,} | {len(k['uncaught'])} | "
            f"{len(k['slow'])} | {k['slowest_s']:.2f} | {k['per_s'] or 0:,.0f} |"
            for name, k in fuzz["kinds"].items()
        ),
    ]


def _status(one: Mapping[str, Any]) -> str:
    return "-" if one["status"] is None else str(one["status"])


def _ended(one: Mapping[str, Any]) -> str:
    if one["wrong"]:
        return f"**no:** {_cell(one['wrong'])[:200]}"
    return _cell(f"not tried: {one['skipped']}" if one["skipped"] else one["ended"])


def _cell(text: str) -> str:
    """For a table: one line, in which nothing is markup but what the page itself writes."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
