"""The run that a checkpoint is of, as the run.json beside it tells."""

from pathlib import Path

from experiments.runs.run import Run
from experiments.shell.files import read_json
from lightning_modules.components.checkpoints import read_checkpoint


def run_folder(checkpoint: Path) -> Path | None:
    """The folder of the run.json beside a checkpoint, or beside its folder; None where there is none."""
    return next((f for f in (checkpoint.parent, checkpoint.parent.parent) if (f / "run.json").is_file()), None)


def run_beside(checkpoint: Path) -> Run | None:
    """That run; raises as `read_checkpoint` does for what is no checkpoint, ValueError for a damaged run.json."""
    read_checkpoint(checkpoint)
    folder = run_folder(checkpoint)
    return None if folder is None else Run.from_config(read_json(folder / "run.json"))
