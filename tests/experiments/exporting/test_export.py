"""`experiments.export` writes what is ours, or nothing; the file runs without this repository."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.shapes import Shapes, ShapesDataModule
from experiments.export import main
from experiments.exporting.compared import MOST, DiffersError, compare
from experiments.exporting.formats import FORMATS, METADATA, CannotExportError, prepared
from experiments.exporting.metadata import metadata
from experiments.exporting.quantised import Cost
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.catalogue import load
from lightning_modules.components.checkpoints import digest, digest_file
from lightning_modules.unet import UNetModule

ROOT = Path(__file__).parents[3]
TINY = Run(
    module=UNetModule,
    datamodule=ShapesDataModule,
    hparams={"width": 4, "depth": 2, "lr": 0.01, "norm": "batch"},
    data={"size": 24, "length": 4, "batch_size": 2},
    trainer={"max_epochs": 1},
)
onnx = pytest.mark.extra("export", "onnx", "onnxruntime", "onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "seed0"
    train(TINY, out, accelerator="cpu", enable_progress_bar=False)
    return out / "checkpoints" / "last.ckpt"


def export(checkpoint: Path, out: Path, *flags: str) -> None:
    main([str(checkpoint), "--out", str(out), "--threads", "1", *flags])


def test_torchscript_is_the_network_at_any_size(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(trained, tmp_path / "a.pt", "--format", "torchscript", "--dynamic", "--size", "33", "47")
    printed = capsys.readouterr().out
    assert re.search(r"PyTorch at 33 x 47, 97 x 131, 64 x 96, 70 x 105: .* 0 of 27,\d{3} labels", printed)
    assert re.search(r"33 x 47 on 1 CPU thread: PyTorch [\d.]+ ms, TorchScript [\d.]+ ms", printed)
    facts = {METADATA: ""}
    network = torch.jit.load(tmp_path / "a.pt", _extra_files=facts)
    images = torch.rand(1, 3, 41, 50)
    torch.testing.assert_close(network(images), load(trained)(images))
    told = json.loads(facts[METADATA])
    assert json.loads(told["class_names"]) == ["background", "disc", "square"]
    assert json.loads(told["palette"])[1] == [230, 159, 0] and told["ignore_index"] == "255"
    assert told["architecture"] == "UNetModule" and told["data"] == "ShapesDataModule" and told["sizes"] == "any"
    assert json.loads(told["value_range"]) == [0, 1] and told["scale"] == "1.0" and len(json.loads(told["mean"])) == 3


def test_a_network_for_one_size_refuses_others(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "a.pt", "--format", "torchscript", "--size", "32", "48")
    network = torch.jit.load(tmp_path / "a.pt")
    assert network(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)
    with pytest.raises(Exception, match="exported for images of another size"):
        network(torch.rand(1, 3, 48, 32))


def test_pt2_holds_its_metadata_and_no_path_of_this_machine(trained: Path) -> None:
    module = load(trained)
    exported = FORMATS["pt2"].export(prepared(module), (33, 47), True, {"architecture": "UNetModule"})
    facts = {METADATA: ""}
    program: Any = torch.export.load(io.BytesIO(exported.data), extra_files=facts)
    assert json.loads(facts[METADATA]) == {"architecture": "UNetModule"} and exported.smallest == 2
    images = torch.rand(1, 3, 30, 52)
    assert torch.equal(program.module()(images), module(images))
    assert str(ROOT).encode() not in exported.data


def test_what_a_checkpoint_stores_comes_before_its_run(trained: Path) -> None:
    module = load(trained)
    module.trained = {"data": "CamVidDataModule", "reads": {"scale": 0.5, "channels": "rgb"}, "commit": "abc"}  # type: ignore[assignment]
    told = metadata(module, TINY, "any")
    assert told["data"] == "CamVidDataModule" and told["scale"] == "0.5" and told["commit"] == "abc"
    assert json.loads(told["reads"]) == {"channels": "rgb"}


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "differs from the network by": lambda logits: logits * (1 + 3 * MOST),
    "by nan of its largest": lambda logits: logits * torch.nan,
    "returns logits of the shape (1, 3, 24, 20)": lambda logits: logits[..., :20],
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("free", [True, False])
def test_what_differs_is_refused(said: str, free: bool, trained: Path) -> None:
    module = load(trained)
    compare(module, lambda images: module(images), (24, 40), free, "it")
    with pytest.raises(DiffersError, match=re.escape(said)) as refused:
        compare(module, lambda images: WRONG[said](module(images)), (24, 40), free, "it")
    assert ("--dynamic" in str(refused.value)) == free


def test_a_runtime_that_fails_is_refused(trained: Path) -> None:
    def fails(images: Tensor) -> Tensor:
        if images.shape[2] != 24:
            raise RuntimeError("no such size\nat a place")
        return module(images)

    module = load(trained)
    with pytest.raises(DiffersError, match=r"at 97 x 131 pixels fails \(RuntimeError: no such size at a place\)"):
        compare(module, fails, (24, 40), True, "it")


def test_a_network_that_a_format_cannot_hold_is_named() -> None:
    module = prepared(UNetModule(3, 255, width=2, depth=1, padding="valid", tile=32))
    with pytest.raises(CannotExportError, match=r"UNetModule cannot be exported as pt2 with free .* --dynamic"):
        FORMATS["pt2"].export(module, (97, 131), True, {})


def copied(trained: Path, folder: Path) -> Path:
    """The checkpoint alone, with its run.json."""
    (folder / "checkpoints").mkdir()
    shutil.copy(trained.parents[1] / "run.json", folder)
    return Path(shutil.copy(trained, folder / "checkpoints" / "last.ckpt"))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def tampered(path: Path) -> None:
    digest_file(path).write_text(f"{digest(path)}  {path.name}\n")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["segmentation"]["architecture"] = "SegNetModule"
    torch.save(content, path)


def without_run(path: Path) -> None:
    (path.parents[1] / "run.json").unlink()


@pytest.mark.parametrize(
    ("change", "flags", "said", "status"),
    [
        (truncated, "", "is not a checkpoint of experiments.train", 2),
        (tampered, "", "is damaged: its SHA-256 is not that in last.ckpt.sha256", 2),
        (of_another, "", "holds no module of this version", 2),
        (Path.unlink, "", "is not a file: give a checkpoint such as", 2),
        (None, "--out {}/there.pt", "there.pt exists: remove it, or choose another file with --out", 2),
        (None, "--out {}/there.pt/a.pt", "cannot write {}/there.pt/a.pt ({}/there.pt is not a folder)", 73),
        (without_run, "--int8 --format onnx", "there is no run.json beside", 2),
        (None, "--int8", "--format torchscript is not for: give --format onnx", 2),
        (None, "--format tflite", "invalid choice: 'tflite'", 2),
        (None, "--dynamik", "did you mean --dynamic?", 2),
        (None, "--size 0 5", "expects", 2),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    change: Callable[[Path], Any] | None,
    flags: str,
    said: str,
    status: int,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = copied(trained, tmp_path)
    (tmp_path / "there.pt").write_bytes(b"another")
    if change is not None:
        change(checkpoint)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        main([str(checkpoint), "--format", "torchscript", "--size", "24", "24", *flags.format(tmp_path).split()])
    error = capsys.readouterr().err
    assert ended.value.code == status and error.startswith("error: ") and error.count("\n") == 1, error
    assert said.format(tmp_path, tmp_path) in error or said.replace("{}", str(tmp_path)) in error
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_8_bits_cost_is_said_by_class() -> None:
    before = {"miou": np.float64(0.5), "iou": np.array([0.9, np.nan, 0.1])}
    after = {"miou": np.float64(0.49), "iou": np.array([0.91, np.nan, 0.07])}
    said = Cost(["a", "b", "c"], 7, before, after).sentence
    assert said == (
        "mIoU on 7 validation images: float32 50.00%, int8 49.00% (-1.00 points); of the classes c fares worst (-3.00)"
    )


@onnx
def test_int8_calibrates_scores_and_writes_both(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(trained, tmp_path / "a.onnx", "--dynamic", "--int8", "--images", "3", "--size", "24", "24")
    printed = capsys.readouterr().out
    assert re.search(r"mIoU on 3 validation images: float32 [\d.]+%, int8 [\d.]+% \([+-][\d.]+ points\)", printed)
    assert re.search(r"ONNX Runtime [\d.]+ ms \([\d.]+ of that\), int8 [\d.]+ ms", printed)
    import onnx as package

    whole, eight = (package.load(tmp_path / name) for name in ("a.onnx", "a.int8.onnx"))
    assert {"QuantizeLinear"} <= {node.op_type for node in eight.graph.node}
    facts = [{fact.key: fact.value for fact in one.metadata_props} for one in (whole, eight)]
    assert facts[0].items() <= facts[1].items() and facts[0]["architecture"] == "UNetModule"
    assert [d.dim_param or d.dim_value for d in whole.graph.input[0].type.tensor_type.shape.dim] == [
        *(1, 3, "height", "width")
    ]
    assert str(ROOT).encode() not in (tmp_path / "a.onnx").read_bytes()


@onnx
def test_int8_names_data_that_do_not_fit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (
        (["--data", "brain"], "the checkpoint has the classes ['background', 'disc', 'square'], and the data"),
        (["--size", "32", "32"], "24 x 24 pixels, and the network is exported for 32 x 32: give --dynamic"),
    ):
        with pytest.raises(SystemExit, match="2"):
            export(trained, tmp_path / "a.onnx", "--int8", *flags)
        assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


# Runs a script as where this repository and torch are not installed.
WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(("lightning_modules", "datamodules", "experiments", "torch", "lightning"))
runpy.run_path(sys.argv.pop(0) and sys.argv[0], run_name="__main__")
"""


@onnx
def test_the_script_of_the_documentation_needs_no_repository(trained: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len([line for line in script.splitlines() if line]) == 12
    (tmp_path / "segment.py").write_text(script)
    export(trained, tmp_path / "a.onnx", "--dynamic", "--size", "24", "24")
    image = (255 * Shapes("test", 1, 50)[0][0].clamp(0, 1)).round().to(torch.uint8)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    command = [sys.executable, "-I", "-c", WITHOUT, "segment.py", "a.onnx", "image.png", "mask.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        labels = load(trained)(image[None] / 255)[0].argmax(0)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P" and mask.getpalette()[:9] == [0, 0, 0, 230, 159, 0, 86, 180, 233]
        assert np.array_equal(np.asarray(mask), labels.numpy())
    assert "'disc': " in done.stdout
