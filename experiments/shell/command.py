"""How every command begins and ends: its output, its console, its one line and exit status for what goes wrong."""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments.shell.ending import ending

if TYPE_CHECKING:
    from rich.console import Console

LOG_COLUMNS = 160  # of a log file or a pipe, which have no width of their own, and a table wants one


def forgiving_output() -> None:
    """What the terminal's encoding lacks is printed as its number, such as \\xb1: no reason for a success to fail.

    The first thing of every command. A file is UTF-8 whatever the terminal is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def console() -> "Console":
    """As wide as the terminal, or `LOG_COLUMNS` where the output goes elsewhere."""
    from rich.console import Console  # not for experiments.doctor, which tells what is not installed

    return Console(width=None if sys.stdout.isatty() else LOG_COLUMNS, emoji=False)


def of_data_in_a_line() -> None:
    """What may be right with data is said in a line of its own, without the place in the code that found it."""
    usual = warnings.formatwarning
    if usual.__name__ == of_data_in_a_line.__name__:  # of a command before in this process
        return

    def formatted(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        said = str(message)
        return f"{said}\n" if said.startswith("W_") else usual(message, category, *place, **more)

    formatted.__name__ = of_data_in_a_line.__name__
    warnings.formatwarning = formatted


@contextmanager
def command(interrupted: str = "") -> "Iterator[Console]":
    """What a command does stands in this context, or in a function that it decorates: see `ending`."""
    forgiving_output()
    of_data_in_a_line()
    with ending(interrupted):
        yield console()
