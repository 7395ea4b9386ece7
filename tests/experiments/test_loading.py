"""Classes that files and flags name are of this project and of the right kind, and nothing else is imported for
them."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.shapes import ShapesDataModule
from experiments.runs.checkpoints import checkpoint_to_resume
from experiments.runs.run import Run
from experiments.runs.training import train
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES, load
from experiments.shell.class_flags import ClassParser
from experiments.train import parse_run
from lightning_modules.components.checkpoints import read_checkpoint
from lightning_modules.components.encoders.weights import read_weights
from lightning_modules.components.errors import MoreThanDataError, NonFiniteError
from lightning_modules.unet import UNetModule

RUN = Run(module=UNetModule, datamodule=ShapesDataModule, hparams={"width": 4, "depth": 2}, data={"size": 32})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a checkpoint that can be loaded."""
    module, path = UNetModule(3, 255, width=4, depth=2), tmp_path_factory.mktemp("module") / "x.ckpt"
    module.describe(["a", "b", "c"], [(0, 0, 0)] * 3)
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    module.on_save_checkpoint(content)
    torch.save(content, path)
    assert isinstance(load(path), UNetModule)
    return content


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    return {f"other.{name}": value for name, value in state.items()}


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unknown hyperparameter": lambda c: c | {"hyper_parameters": c["hyper_parameters"] | {"widht": 4}},
    "other width": lambda c: c | {"hyper_parameters": c["hyper_parameters"] | {"width": 5}},
    "width that is a word": lambda c: c | {"hyper_parameters": c["hyper_parameters"] | {"width": "4"}},
    "code as hyperparameter": lambda c: (
        c | {"hyper_parameters": c["hyper_parameters"] | {"_instantiator": "os.system"}}
    ),
    "no hyperparameters": lambda c: c | {"hyper_parameters": {}},
    "hyperparameters of another type": lambda c: c | {"hyper_parameters": [1]},
    "without hyperparameters": lambda c: {k: v for k, v in c.items() if k != "hyper_parameters"},
    "architecture list": lambda c: c | {"segmentation": c["segmentation"] | {"architecture": ["UNetModule"]}},
    "architecture number": lambda c: c | {"segmentation": c["segmentation"] | {"architecture": 3}},
    "architecture null": lambda c: c | {"segmentation": c["segmentation"] | {"architecture": None}},
    "architecture elsewhere": lambda c: c | {"segmentation": c["segmentation"] | {"architecture": "os.system"}},
    "no architecture": lambda c: c | {"segmentation": {}},
    "no classes": lambda c: c | {"segmentation": {"architecture": "UNetModule"}},
    "palette of another type": lambda c: c | {"segmentation": c["segmentation"] | {"palette": 3}},
    "empty state": lambda c: c | {"state_dict": {}},
    "state that does not match": lambda c: c | {"state_dict": renamed(c["state_dict"])},
    "state of words": lambda c: c | {"state_dict": dict.fromkeys(c["state_dict"], "x")},
    "state list": lambda c: c | {"state_dict": [1]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_fits_no_module_is_a_value_error_with_its_name(
    change: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "strange.ckpt"
    torch.save(CHANGES[change](stored), path)
    with pytest.raises(
        ValueError, match=r"strange\.ckpt (holds no module of this version|is not a checkpoint)"
    ) as raised:
        load(path)
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_loaded(value: float, stored: dict[str, Any], tmp_path: Path) -> None:
    name = next(name for name, weight in stored["state_dict"].items() if weight.is_floating_point())
    bad = {name: torch.full_like(stored["state_dict"][name], value)}
    torch.save(stored | {"state_dict": stored["state_dict"] | bad}, tmp_path / "bad.ckpt")
    with pytest.raises(NonFiniteError, match=rf"bad\.ckpt holds NaN or infinity in {name}"):
        load(tmp_path / "bad.ckpt")


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 1", "pickle 2", "pickle 4", "pickle 5", "class"])
def test_a_checkpoint_that_would_run_code_is_called_that(form: str, stored: dict[str, Any], tmp_path: Path) -> None:
    path, canary = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "canary"
    path.parent.mkdir(parents=True)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"x": Evil(canary)}, protocol=int(form[-1])))
    elif form == "class":
        torch.save(stored | {"x": Path}, path)
    else:
        torch.save(stored | {"x": Evil(canary)}, path, _use_new_zipfile_serialization=form == "zip")
    for read in (
        load,
        read_checkpoint,
        lambda _: checkpoint_to_resume(tmp_path / "run", "0"),
        lambda p: read_weights(str(p)),
    ):
        with pytest.raises(ValueError, match=r"last\.ckpt.*holds more than data; it is not loaded") as raised:
            read(path)
        advice = ["weights_only", "add_safe_globals", "Re-running", *["delete"] * (form != "pickle 0")]
        assert not any(word in str(raised.value) for word in advice)
    if form != "pickle 0":  # which torch does not tell from a damaged file
        with pytest.raises(MoreThanDataError):
            read_checkpoint(path)
    assert path.is_file() and not canary.exists()


def test_a_damaged_pickle_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-3] + b"\xff\xff.")
    with pytest.raises(ValueError, match=r"x\.ckpt is not a checkpoint of experiments.train") as raised:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "weights_only" not in str(raised.value) and not isinstance(raised.value, MoreThanDataError)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "numpy": ({"module": "lightning_modules.base.np"}, "module must be a SegmentationModule"),
    "function": ({"module": "lightning_modules.refinement.native.library"}, "module must be a SegmentationModule"),
    "network": ({"module": "lightning_modules.unet.UNet"}, "module must be a SegmentationModule"),
    "base": ({"module": "lightning_modules.base.SegmentationModule"}, "module must be a SegmentationModule"),
    "path": ({"datamodule": "datamodules.folder.Path"}, "datamodule must be a SegmentationDataModule"),
    "module as data": (
        {"datamodule": "lightning_modules.unet.UNetModule"},
        "datamodule must be a class of the package",
    ),
    "other package": (
        {"module": "lightning_modules_evil.X"},
        "module must be a class of the package lightning_modules",
    ),
    "elsewhere": ({"module": "evilmod.C"}, "module must be a class of the package lightning_modules, got 'evilmod.C'"),
    "package": ({"module": "lightning_modules"}, "module must be a class of the package"),
    "dots": ({"module": "lightning_modules..evil"}, "module must be a class of the package"),
    "gone": ({"module": "lightning_modules.gone.GoneModule"}, "is no class of this version"),
    "list": ({"module": ["lightning_modules.unet.UNetModule"]}, "module must be a class of the package"),
    "null": ({"datamodule": None}, "datamodule must be a class of the package"),
    **{f"seed {s!r}": ({"seed": s}, "seed must be a whole number") for s in ("0", -1, None, True, 1.5, [0], 2**32)},
    **{
        f"{part} {value!r}": ({part: value}, f"{part} must be keyword arguments by name")
        for part in ("hparams", "data", "trainer")
        for value in (None, [], "x", 3, [["lr", 1]])
    },
    "fingerprint": ({"fingerprint": 3}, "fingerprint must be 16 hexadecimal digits"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_is_checked_by_type(case: str) -> None:
    change, message = CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        Run.from_config(RUN.config() | change)


@pytest.mark.parametrize("part", ["module", "datamodule", "hparams", "data", "trainer", "seed"])
def test_what_a_config_lacks_is_named(part: str) -> None:
    config = RUN.config()
    del config[part]
    with pytest.raises(ValueError, match=rf"a run must be a dictionary with .*: it lacks {part}"):
        Run.from_config(config)


@pytest.mark.parametrize("config", [None, [], "x", 3])
def test_a_config_is_a_dictionary(config: Any) -> None:
    with pytest.raises(ValueError, match=r"a run must be a dictionary .* got"):
        Run.from_config(config)


CANARY = "import builtins\nbuiltins.canary.append(__name__)\nclass C: pass\ndef f(*_): pass\n"
FOREIGN = '{"class_path": "evilmod.C"}'
NESTED = (
    '{"class_path": "lightning.pytorch.strategies.DDPStrategy", '
    f'"init_args": {{"ddp_comm_hook": "evilmod.f", "cluster_environment": {FOREIGN}}}}}'
)
VALUES = ("evilmod.C", FOREIGN, f"[{FOREIGN}]", f'{{"x": {FOREIGN}}}', NESTED, "!!python/name:evilmod.C")


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of modules outside of this project that were imported since."""
    (tmp_path / "evilmod.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.canary", found := list[str](), raising=False)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    return found


def test_the_canary_sings(imported: list[str]) -> None:
    __import__("evilmod")
    assert imported == ["evilmod"]


@pytest.mark.parametrize("model", ["unet", "crf_as_rnn", "smp"])
def test_no_flag_imports_what_it_names(model: str, imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[str] = []
    real = ClassParser.parse_args

    def seen(self: ClassParser, *args: Any, **named: Any) -> Any:
        flags[:] = [flag for action in self._actions for flag in action.option_strings]
        return real(self, *args, **named)

    monkeypatch.setattr(ClassParser, "parse_args", seen)
    parse_run(["--model", model, "--data", "shapes"])
    tried = [flag for flag in flags if flag not in ("--help", "-h", "--model", "--data")]
    assert len(tried) > 40 and "--trainer.strategy" in tried
    tried += [f"--trainer.{name}" for name in ("logger", "callbacks", "plugins", "profiler")] + ["--config"]
    for flag in tried:
        words = [[flag, value] for value in (VALUES if "trainer" in flag else VALUES[:2])]
        words += [[f"{flag}.{part}", "evilmod.C"] for part in ("class_path", "help", "init_args.x")] * (
            "trainer" in flag
        )
        for pair in words:
            try:
                parse_run(["--model", model, "--data", "shapes", *pair])
            except SystemExit as stop:
                assert stop.code == 2, pair
            assert not imported, pair


def test_no_file_and_no_dictionary_of_flags_imports_what_it_names(imported: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("strategy:\n  class_path: evilmod.C\n")
    for flag in ("--trainer", "--data", "--model", "--config"):
        for value in (str(tmp_path / "c.yaml"), f'{{"strategy": {FOREIGN}}}', f'{{"accelerator": {FOREIGN}}}', FOREIGN):
            with pytest.raises(SystemExit) as stop:
                parse_run([flag, value])
            assert stop.value.code == 2 and not imported, (flag, value)


@pytest.mark.parametrize("flag", ["--trainer.strategy", "--trainer.accelerator"])
def test_a_class_in_place_of_a_name_is_refused_by_the_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in VALUES:
        with pytest.raises(SystemExit):
            parse_run(["--model", "unet", "--data", "shapes", flag, value])
        assert f"{flag}: expected a name" in capsys.readouterr().err
    assert parse_run(["--data", "shapes", flag, "cpu"])[1].where == {flag.rpartition(".")[2]: "cpu"}


def test_tables_name_what_they_hold() -> None:
    assert all(
        Run.from_config(RUN.config() | {"module": f"{c.__module__}.{c.__name__}"}) for c in ARCHITECTURES.values()
    )
    assert all(
        Run.from_config(RUN.config() | {"datamodule": f"{c.__module__}.{c.__name__}"}) for c in DATAMODULES.values()
    )


def test_a_trained_run_still_loads(tmp_path: Path) -> None:
    train(
        RUN.but(trainer={"max_epochs": 1}, **{"data.length": 8}),
        tmp_path / "run",
        accelerator="cpu",
        enable_progress_bar=False,
    )
    assert isinstance(load(tmp_path / "run" / "checkpoints" / "last.ckpt"), UNetModule)
