"""Says what of this machine would stop, slow or change a training, and how to mend it. Trains nothing.

    python -m experiments.doctor
    python -m experiments.doctor --out DIR     # the folder that runs will be written to
    python -m experiments.doctor --json        # the same for a program

One line a check: ok, warning or wrong, and behind an arrow what mends it. The exit status is 0 where nothing is wrong,
else that of the command that would fail: see docs/exit-codes.md. Nobody is asked over a network, but for W&B where you
are logged in to it, and the file server of DIR.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.machines import hardware, software, storage, surroundings
from experiments.machines.finding import OK, WARNING, WRONG, Check, Finding, examined
from experiments.shell.command import forgiving_output
from experiments.shell.ending import CANNOT_WRITE, ending
from experiments.shell.flags import Parser


def checks(out: Path) -> list[Check]:
    """All of them, in the order in which they are told."""
    driver = hardware.has_driver()

    def cache() -> Finding:
        from datamodules.fingerprint import cache_folder

        return storage.cache(cache_folder)

    return [
        Check("python", software.python),
        Check("torch", lambda: software.torch_build(driver=driver)),
        Check("torchvision", software.torchvision_build),
        Check("packages", lambda: software.packages(software.requirements(), software.constraints())),
        Check("extras", lambda: software.extras(software.extras_of())),
        Check("compiler", software.a_compiler),
        Check("gpu", lambda: hardware.gpus(driver, os.environ)),
        Check("processes", hardware.nccl),
        Check("cpus", lambda: hardware.cpus(os.environ)),
        Check("memory", hardware.memory),
        Check("shared memory", hardware.shared_memory),
        Check("open files", hardware.descriptors),
        Check("disk", lambda: storage.space(out, 10, storage.ELSEWHERE), storage.LATE, CANNOT_WRITE),
        Check("cache", cache, "name another folder with SEGLAB_CACHE: this one does not answer"),
        Check("writing", lambda: storage.probe(out), storage.LATE, CANNOT_WRITE),
        Check("host", surroundings.host, surroundings.MEND_HOST),
        Check("launcher", lambda: surroundings.ranks(os.environ)),
        Check("environment", lambda: surroundings.overrides(os.environ)),
        Check("W&B", lambda: surroundings.wandb(os.environ), surroundings.OFFLINE),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    forgiving_output()
    with ending():
        parser = Parser(description=__doc__)
        parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR", help="folder of future runs")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
        args = parser.parse_args(argv)
        begun = time.monotonic()
        found = examined(checks(args.out))
        status = next((one.status for _, one in found if one.state == WRONG), 0)
        if args.json:
            rows = [{"name": name, "state": one.state, "said": one.said, "mend": one.mend} for name, one in found]
            print(json.dumps({"status": status, "checks": rows}, indent=2))
        else:
            for name, one in found:
                print(f"{one.state:7}  {name}: {one.said}{f' -> {one.mend}' if one.mend else ''}")
            counts = {state: sum(one.state == state for _, one in found) for state in (OK, WARNING, WRONG)}
            told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            print(f"{told}, in {time.monotonic() - begun:.1f} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
