"""Brings about what goes wrong: faults of a training, attacks by files, kills at random moments. Writes
docs/RELIABILITY.md.

python -m tests.faults [--only TEXT ...] [--quick] [--record docs/RELIABILITY.md --fuzz FILE.json]

TEXT is part of a name, "faults", "attacks", "kills", or the number of a fault. --quick leaves out what takes long, and
what `make test` has already.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.harness import ROOT, Bench, Skipped, Wrong, check, listing

sys.path.insert(0, str(ROOT / "tests" / "experiments"))
PARTS = ("datamodules", "experiments", "lightning_modules", "tests", "docs")


def prepare() -> None:
    """Imports, before anything is forked, what the commands will ask for."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    import experiments.ablate_upsampling
    import experiments.report
    import experiments.train  # noqa: F401


def project() -> dict[str, object]:
    """What lies in the folder of the project, to compare."""
    found: dict[str, object] = dict.fromkeys(os.listdir(ROOT))
    return found | {f"{part}/{name}": state for part in PARTS for name, state in listing(ROOT / part).items()}


def judge(entry: Any) -> dict[str, Any]:
    """Brings a fault or an attack about in a folder of its own; what is recorded of it."""
    folder = Path(tempfile.mkdtemp(prefix="seglab-fault-"))
    folder.chmod(0o755)  # for what another user does
    bench, started = Bench(folder / "bench"), time.monotonic()
    found: dict[str, Any] = {
        "name": entry.name,
        "does": entry.does,
        "status": None,
        "seconds": 0.0,
        "ended": "",
        "wrong": "",
        "skipped": "",
    }
    before = project()
    try:
        ended, found["ended"] = entry.act(bench)
        found |= {"status": ended.status, "seconds": round(ended.seconds, 2)}
        check(not any(bench.outside.iterdir()), f"written outside: {[p.name for p in bench.outside.iterdir()]}")
        check(not bench.left(), "processes are left")
        changed = sorted(name for name, _ in before.items() ^ project().items())
        check(not changed, f"files of the project were changed: {', '.join(changed[:3])}")
    except Skipped as reason:
        found["skipped"] = str(reason)
    except Wrong as wrong:
        found["wrong"] = str(wrong)
    except Exception as error:  # noqa: BLE001  # what is recorded is complete, and says so
        found["wrong"] = f"{type(error).__name__}: {error}"
    finally:
        bench.end()
        found |= {"took": round(time.monotonic() - started, 1), "real": bench.real > 0}
        if found["wrong"]:
            found["kept"] = str(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def chosen(only: Sequence[str], when: Sequence[str]) -> list[tuple[str, Any]]:
    """Faults and attacks, each with the part of the page that it belongs to."""
    from tests.faults.attacks import ATTACKS
    from tests.faults.faults import FAULTS

    every = [("faults", one) for one in FAULTS] + [("attacks", one) for one in ATTACKS]
    of_time = [(part, one) for part, one in every if one.when in when]
    return [(part, one) for part, one in of_time if not only or any(_names(text, part, one) for text in only)]


def _names(text: str, part: str, entry: Any) -> bool:
    return getattr(entry, "number", None) == int(text) if text.isdigit() else text == part or text in entry.name


def serve() -> None:
    """Judges the names that it reads, one a line, and answers each with a line of JSON; tests ask it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    entries = {one.name: one for _, one in chosen((), ("test", "push", "full"))}
    for line in sys.stdin:
        answers.write(json.dumps(judge(entries[line.strip()])) + "\n")
        answers.flush()


def show(found: Mapping[str, Any]) -> None:
    status = "" if found["status"] is None else f" [{found['status']}]"
    verdict = "WRONG" if found["wrong"] else "skipped" if found["skipped"] else "ok"
    said = found["wrong"] or found["skipped"] or found["ended"]
    print(f"{verdict:8}{found['took']:6.1f} s  {found['name']}{status}: {said}", flush=True)
    if "kept" in found:
        print(f"kept: {found['kept']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--quick", action="store_true", help="what continuous integration runs")
    parser.add_argument("--kills", type=int, help="over all trainings (20, with --quick 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--record", type=Path, metavar="FILE.md", help="write the page, and its data beside it")
    parser.add_argument("--fuzz", type=Path, metavar="FILE.json", help="what tests.fuzz has recorded, for the page")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    if args.record and (args.only or args.quick):
        parser.error("--record is of a whole run: leave out --only and --quick")
    prepare()
    from experiments.shell.difference import git_commit
    from tests.faults import kills, page

    found: dict[str, Any] = {
        "command": f"python -m tests.faults --kills {args.kills or 20} --seed {args.seed}",
        "commit": git_commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "faults": [],
        "attacks": [],
        "kills": [],
        "fuzz": json.loads(args.fuzz.read_text(encoding="utf-8")) if args.fuzz else None,
    }
    for part, entry in chosen(args.only, ("push",) if args.quick else ("test", "push", "full")):
        one = judge(entry)
        show(one)
        found[part].append({"number": entry.number, **one} if part == "faults" else one)
    names = [text for text in args.only if text != "kills"]
    if not args.only or "kills" in args.only or any(text in name for text in names for name in kills.CASES):
        found["kills"] = kills.run(args.kills or (5 if args.quick else 20), args.seed, names)
    if args.record:
        for one in (*found["faults"], *found["attacks"]):
            one.pop("kept", None)
            one["wrong"] = one["wrong"].partition("\n")[0]  # what follows is of this machine
        page.beside(args.record).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        args.record.write_text(page.write(found), encoding="utf-8")
    every = [*found["faults"], *found["attacks"], *found["kills"]]
    wrong = sum(bool(one["wrong"]) for one in every)
    skipped = sum(bool(one.get("skipped")) for one in every)
    print(f"{len(every) - wrong - skipped} passed, {wrong} failed, {skipped} skipped")
    return 1 if wrong or not every else 0


if __name__ == "__main__":
    sys.exit(main())
