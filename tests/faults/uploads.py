"""Faults 24 to 26: W&B."""

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.harness import QUIET, TINY, Bench, Ended, Wrong, check, check_ended, check_files
from tests.faults.starts import SHORT

SERVER = """import signal, sys, wandb_server
with wandb_server.WandbServer(sys.argv[1]) as server:
    signal.signal(signal.SIGUSR1, lambda *_: server.spoil())
    print(server.url, flush=True)
    while True:
        signal.pause()
"""


@contextlib.contextmanager
def wandb_server(state: str = "") -> Iterator[tuple[Any, dict[str, str]]]:
    """A stand-in for W&B's server in a process of its own, and the environment of somebody who is logged in to it."""
    place = Path(__file__).parents[1] / "experiments"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, state], cwd=place, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            yield server, {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4}
        finally:
            server.kill()


def logged(bench: Bench, wanted: str, variables: dict[str, str]) -> tuple[Ended, str]:
    ended = bench.train(*SHORT, "--logger", "wandb", variables=variables)
    check_ended(ended, 0, wanted)
    check((bench.out / "result.json").exists(), "no result")
    check_files(bench.out)
    return ended, "trained to its end"


def no_key(bench: Bench) -> tuple[Ended, str]:
    with wandb_server() as (_, variables):
        own = {"WANDB_BASE_URL": variables["WANDB_BASE_URL"], "NETRC": str(bench.folder / "none")}
        ended, said = logged(bench, "python -m experiments.sync", own)
    return ended, f"asks for nothing, logs offline, says how to upload; {said}"


def wandb_states(bench: Bench) -> tuple[Ended, str]:
    """Four at a time, because most of it is waiting."""
    from wandb_server import STATES

    slowest = Ended(0, 0.0, "")
    for first in range(0, len(STATES), 4):
        with contextlib.ExitStack() as stack:
            commands = []
            for state in STATES[first : first + 4]:
                server, variables = stack.enter_context(wandb_server(state))
                out = bench.here / state / "run"
                flags = [*TINY, *QUIET, *SHORT, "--logger", "wandb", "--out", out]
                commands.append((state, out, server, bench.start("experiments.train", *flags, variables=variables)))
            for state, out, server, command in commands:
                if state in ("dies", "hangs"):
                    bench.until(lambda out=out: bench.rows(out), command)  # type: ignore[misc]
                    server.send_signal(signal.SIGUSR1)
            for state, out, _, command in commands:
                try:
                    ended = check_ended(command.wait(90), 0, limit=90)
                except Wrong as wrong:
                    raise Wrong(f"{state}: {wrong}") from wrong
                check((out / "result.json").exists(), f"{state}: no result")
                check_files(out)
                slowest = max(slowest, ended, key=lambda one: one.seconds)
    return slowest, f"{len(STATES)} states of a server ({', '.join(STATES)}): each trained to its end"


def wandb_modes(bench: Bench) -> tuple[Ended, str]:
    ended, said = logged(bench, "python -m experiments.sync", {"WANDB_MODE": "offline"})
    shutil.rmtree(bench.out)
    logged(bench, "test/miou", {"WANDB_MODE": "disabled"})
    return ended, said
