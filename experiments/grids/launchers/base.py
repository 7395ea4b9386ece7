"""What starts the cells of a grid, the same for this machine, Ray and SLURM: `run_cells` decides which, and when."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

STOP_SECONDS = 30  # for a cell to finish its step and save


@dataclass(frozen=True)
class Asked:
    """A cell to start: its folder, with run.json in it, and further flags of `experiments.grids.cell`.

    Where it is kept in a store, a machine that does not see the folder works in its `scratch` instead.
    """

    folder: Path
    flags: Sequence[str]
    scratch: Path | None = None


class Job(Protocol):
    """A started cell, wherever it runs: of `subprocess.Popen` that which a grid asks for.

    `lost` says why it ended where that was not its own doing, and starting it again goes on; else it is empty. `place`
    says where it ran, and at which attempt, where that is not this machine at the first.
    """

    returncode: int | None  # negative where a signal ended it
    lost: str
    place: str

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts cells and tells how they are.

    `jobs` is how many are expected to run at a time, for estimates; `devices` those of a cell, a number or "auto". Time
    passes by `now` and `pause` alone, so that a grid can be simulated.
    """

    jobs: int
    devices: str

    def open(self, classes: Sequence[str]) -> AbstractContextManager[object]:
        """Within it cells are started; `classes` are their modules, data modules and steps as run.json names them."""
        ...

    def room(self) -> int:
        """How many cells it takes now; more would have to wait where nobody sees them."""
        ...

    def start(self, asked: Sequence[Asked]) -> Sequence[Job]: ...

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def pause(self) -> None:
        """Waits a little, or until something has happened."""
        ...
