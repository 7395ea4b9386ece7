"""Loaders: what becomes of their processes."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from datamodules.base import SegmentationDataset
from datamodules.shapes import ShapesDataModule


def test_a_process_with_workers_ends_after_an_error_that_holds_its_loader(tmp_path: Path) -> None:
    """Workers ignore SIGTERM, by which Python asks them to end before it waits for them."""
    script = tmp_path / "script.py"
    script.write_text(
        "from datamodules.shapes import ShapesDataModule\n"
        "from lightning.pytorch import Trainer\n"
        "data = ShapesDataModule(size=32, length=8, batch_size=2, num_workers=2)\n"
        "data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator='cpu')\n"
        "batches = iter(data.train_dataloader())\n"
        "next(batches)\n"
        "raise RuntimeError('as in a training')\n"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=True) as process:
        try:
            _, said = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert said.rstrip().endswith("RuntimeError: as in a training")


def test_data_without_a_test_split_give_the_validation_images_for_it() -> None:
    class WithoutTest(ShapesDataModule):
        scored = "val"

        def load(self, split: str) -> SegmentationDataset:
            assert split != "test"
            return super().load(split)

    data = WithoutTest(length=3)
    assert data.dataset("test") is data.dataset("val")
    assert [batch["index"].item() for batch in data.test_dataloader()] == [0, 1, 2]
    assert ShapesDataModule(length=3).dataset("test").names[0] == "test0000"
