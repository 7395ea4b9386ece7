"""Checks of a machine: each says how it is and how to mend it, none raises, and none keeps the others waiting."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.shell.ending import USAGE

OK, WARNING, WRONG = "ok", "warning", "wrong"


@dataclass(frozen=True)
class Finding:
    """How one thing is, in a line: `state` is OK, WARNING or WRONG, and what is not OK has its `mend`.

    `status` is what a command ends with that would fail by it; `about` names it where its check finds several things.
    """

    state: str
    said: str
    mend: str = ""
    status: int = 0
    about: str = ""


def ok(said: str) -> Finding:
    return Finding(OK, said)


def warning(said: str, mend: str) -> Finding:
    return Finding(WARNING, said, mend)


def wrong(said: str, mend: str, status: int = USAGE) -> Finding:
    return Finding(WRONG, said, mend, status)


@dataclass(frozen=True)
class Check:
    """What is looked at, by name; `late` is the mend of one that may never answer, such as that of a file server.

    Such a one is asked beside the others, and is wrong where it has not answered in time.
    """

    name: str
    look: Callable[[], Finding | Sequence[Finding]]
    late: str = ""
    status: int = USAGE  # where it does not answer


def examined(checks: Sequence[Check], seconds: float = 2.0) -> list[tuple[str, Finding]]:
    """What the checks found, in their order, with the name of each."""
    answers: dict[str, list[Finding]] = {}

    def ask(check: Check) -> None:
        try:
            found = check.look()
            answers[check.name] = [found] if isinstance(found, Finding) else list(found)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of any kind: it is a finding
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            mend = "mend what is wrong in the other lines, and ask again"
            answers[check.name] = [warning(f"could not be checked ({said})", mend)]

    until = time.monotonic() + seconds
    # Daemons: one that hangs in the system does not keep the process from ending.
    asked = {c.name: threading.Thread(target=ask, args=(c,), daemon=True) for c in checks if c.late}
    for thread in asked.values():
        thread.start()
    found = []
    for check in checks:
        if check.name in asked:
            asked[check.name].join(max(0.0, until - time.monotonic()))
        else:
            ask(check)
        late = [wrong(f"no answer within {seconds:g} s", check.late, check.status)]
        found += [(one.about or check.name, one) for one in answers.get(check.name, late)]
    return found
