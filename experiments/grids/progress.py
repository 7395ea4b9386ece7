"""The line that says how far the cells of a grid are: rewritten in place in a terminal, now and then in a log."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

IN_TERMINAL, IN_LOG = 2.0, 30.0  # seconds between two versions of the line, and between two lines


class Progress:
    """Shows a line again and again; what is printed to the console meanwhile stands above it. Use it as a context.

    In a log file, a Slurm log or a pipe each one stays, as nothing can be rewritten there.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._shown = console, 0.0
        live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, line: Callable[[], str]) -> None:
        """Shows the line unless it has just been shown; `line` is called for it."""
        now = time.monotonic()
        if self._shown and now - self._shown < (IN_TERMINAL if self._live else IN_LOG):
            return
        self._shown = now
        if self._live:
            self._live.update(Text(line(), style="dim"), refresh=True)
        else:
            self._console.print(line(), soft_wrap=True, markup=False)
