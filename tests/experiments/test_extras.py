"""Nothing needs an extra to be imported; a command that needs one to run says which, in one line."""

import json
import sys
from pathlib import Path

from bare import extras, modules_of_extras, run
from handmade import write_experiment
from PIL import Image, TiffImagePlugin

sys.path.append(str(Path(__file__).parent / "prediction"))
from trained import checkpoint

# Imports every module; one that exits is named. None of them prints. Then runs each command, in the same process, as
# imports take seconds: argument lists come as JSON, [status, output] go out so.
IMPORT_ALL_AND_RUN_EACH = """
import contextlib, importlib, io, json, pkgutil, runpy, sys
for package in ("lightning_modules", "datamodules", "experiments"):
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")
    for name in [info.name for info in found]:
        try:
            importlib.import_module(name)
        except SystemExit as stop:
            raise AssertionError(f"the import of {name} exits with {stop.code}") from stop
done = []
for module, *arguments in json.loads(sys.argv[1]):
    sys.modules.pop(module, None)  # as in a process that has not imported it
    sys.argv, text = [module.replace(".", "/") + ".py", *arguments], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            runpy.run_module(module, run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code
    done.append([status, text.getvalue()])
print(json.dumps(done))
"""


def test_what_is_hidden_are_the_installed_modules_of_extras() -> None:
    hidden = modules_of_extras()
    assert not hidden & {"torch", "wandb", "nibabel", "pytest", "numpy", "PIL", "lightning", "experiments"}
    installed = "import importlib.util, sys; print(*(m for m in sys.argv[1:] if importlib.util.find_spec(m)))"
    probes = [
        "wandb_workspaces",
        "tensorboard",
        "skimage",
        "pydensecrf",
        "pymatting",
        "pycocotools",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "playwright",
        "mypy",
    ]
    done = run("-c", installed, *probes, "torch")
    assert done.stdout.split() == ["torch"], done.stderr


def test_an_import_exits_prints_and_needs_nothing_and_a_command_that_needs_an_extra_names_it(
    tmp_path: Path, camvid_root: Path
) -> None:
    Image.new("RGB", (40, 30), (9, 99, 200)).save(tmp_path / "photograph.png")
    out, picture = str(tmp_path / "out"), str(tmp_path / "photograph.png")
    georeferenced = TiffImagePlugin.ImageFileDirectory_v2()
    georeferenced[33550] = (0.5, 0.5, 0.0)  # how large a pixel is
    Image.new("RGB", (40, 30)).save(tmp_path / "tile.tif", tiffinfo=georeferenced)
    ckpt = str(checkpoint(tmp_path))
    encoder = ["--model.encoder", "tu-tf_efficientnet_lite0", "--model.weights", "package"]
    commands = [
        ("wandb", ["dashboard", str(tmp_path)]),
        ("tensorboard", ["train", "--data", "shapes", "--logger", "tensorboard", "--out", out]),
        ("tensorboard", ["ablate_upsampling", "--data", "shapes", "--logger", "tensorboard", "--out", out]),
        ("energy", ["train", "--data", "shapes", "--energy", "--out", out]),
        ("energy", ["ablate_upsampling", "--data", "shapes", "--energy", "--out", out]),
        ("pretrained", ["train", "--data", "shapes", "--model", "deeplabv3", *encoder, "--out", out]),
        ("pretrained", ["ablate_encoder", "--data", "shapes", "--dry-run", "--out", out]),
        (
            "pretrained",
            ["ablate_crf", "--data", "camvid", "--root", str(camvid_root), "--weights", "package", "--out", out],
        ),
        ("pretrained", ["benchmark", "ablate_encoder", "--rounds", "1"]),
        ("pretrained", ["soft_segment", picture, "--out", out]),
        ("soft", ["soft_segment", picture, "--weights", "none", "--encoder", "resnet18", "--out", out]),
        ("soft", ["benchmark_crf", "--quick"]),
        ("geo", ["predict", str(tmp_path / "tile.tif"), "--checkpoint", ckpt, "--out", out]),
        ("geo", ["benchmark_prediction"]),
        ("export", ["export", ckpt, "--out", out]),
    ]
    done = run(
        "-c", IMPORT_ALL_AND_RUN_EACH, json.dumps([[f"experiments.{module}", *rest] for _, (module, *rest) in commands])
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("\n") == 1  # of the commands
    for (extra, command), (status, text) in zip(commands, json.loads(done.stdout), strict=True):
        assert extra in extras()
        assert status == 2, (command, text)
        assert f'pip install -e ".[{extra}]"' in text.splitlines()[-1], (command, text)
        assert text.splitlines()[-1].startswith("error: "), command
    assert {path.name for path in Path(out).rglob("*")} <= {".lock"}


def test_a_report_needs_no_extra(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    done = run("-m", "experiments.report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "pip install" not in (tmp_path / "report.html").read_text(encoding="utf-8")
