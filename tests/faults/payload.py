"""What an attack runs where it is loaded, and what a function says of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Payload:
    """Pickled, it runs a command where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def told(function: Callable[[], object]) -> Callable[[], object]:
    """As a command says an error that a person can mend."""
    from experiments.shell.ending import ending

    def call() -> None:
        with ending():
            function()

    return call
