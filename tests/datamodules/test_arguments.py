"""The arguments of data modules: each is declared once, and the command line says what it is for."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import datamodules
from datamodules.base import Loading, SegmentationDataModule
from datamodules.brain import BrainDataModule
from datamodules.folder import FolderDataModule
from datamodules.shapes import ShapesDataModule
from experiments.runs.run import defaults
from experiments.shell.catalogue import DATAMODULES
from experiments.shell.class_flags import settings_of
from experiments.train import parse_run

every_data_set = pytest.mark.parametrize("name", DATAMODULES)


def arguments(cls: type[SegmentationDataModule]) -> list[str]:
    return list(inspect.signature(cls).parameters)


@every_data_set
def test_help_has_a_sentence_for_every_flag_of_the_data(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        parse_run(["--data", name, "--help"])
    flags = re.split(r"\n  --", capsys.readouterr().out)
    for argument in arguments(DATAMODULES[name]):
        (text,) = (flag for flag in flags if re.match(rf"data\.{argument}[ ,]", flag))
        explained = re.match(r"data\.\w+(?: \S+)?(?:, --\S+)* \S+\s+([^\n]*) \((?:required, )?type: ", text)
        assert explained and len(explained[1].split()) >= 3, text


def test_the_help_of_a_closed_set_lists_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--data", "brain", "--help"])
    assert "--data.flip {true,false}" in capsys.readouterr().out


def test_no_data_module_declares_again_what_the_base_declares() -> None:
    base = {field.name for field in fields(Loading)}
    assert "batch_size" in base
    for path in sorted(Path(datamodules.__path__[0]).glob("*.py")):
        if path.name in ("base.py", "transforms.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("DataModule"):
                for init in (part for part in node.body if isinstance(part, ast.FunctionDef)):
                    declared = {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
                    # The crop of shapes is another argument: by default it follows their size.
                    again = declared & base - ({"crop"} if node.name == "ShapesDataModule" else set())
                    assert not again, f"{path.name}: {node.name} declares {again} again: leave it to `loading`"


def test_a_default_that_would_not_count_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Squares\.loading cannot state crop: it is an argument of the constructor"):

        class Squares(ShapesDataModule):
            loading = Loading(crop=32)


@pytest.mark.parametrize(
    ("base", "stated", "way_out"),
    [
        (FolderDataModule, {"classes": {"a": (0, 0, 0)}}, "their colours, as published"),
        (FolderDataModule, {"classes": ["a", "b"]}, "their colours, as published"),
        (FolderDataModule, {"channels": "grey"}, "state its default there"),
        (BrainDataModule, {"batch_size": 2}, r"state it in loading = Loading\(batch_size=\.\.\.\)"),
        (ShapesDataModule, {"length": 3}, "state its default there"),
    ],
)
def test_an_argument_stated_as_an_attribute_is_refused(
    base: type[SegmentationDataModule], stated: dict[str, Any], way_out: str
) -> None:
    (name,) = stated
    with pytest.raises(TypeError, match=rf"Own\.{name} is read by nothing: it is an argument; .*{way_out}"):
        type("Own", (base,), stated)
    type("Own", (base,), {name: property(lambda data: 1)})  # one that is read in its way


def test_a_place_of_data_without_a_name_for_what_they_hold_is_refused() -> None:
    def init(data: SegmentationDataModule, place: str = "", root: str = "") -> None: ...

    said = r"Own takes root and needs identify\(arguments\), .* return digest_files\(arguments\.get\(\"root\"\)"
    with pytest.raises(TypeError, match=said):
        type("Own", (SegmentationDataModule,), {"__init__": init})
    with pytest.raises(TypeError, match="Own takes place and needs identify"):
        type("Own", (SegmentationDataModule,), {"__init__": init, "located": ("place",)})
    own = {"__init__": init, "identify": classmethod(lambda cls, arguments: "0" * 16)}
    assert "root" in arguments(type("Own", (SegmentationDataModule,), own))


@every_data_set
def test_the_signature_is_that_of_the_flags(name: str) -> None:
    cls = DATAMODULES[name]
    flags, own = (inspect.signature(taken).parameters.values() for taken in (settings_of(cls, Loading), cls))
    assert [(p.name, p.kind, p.default) for p in flags] == [(p.name, p.kind, p.default) for p in own]
    assert set(defaults(cls)) == set(arguments(cls)) - {"root"}


def test_a_data_set_changes_defaults_of_its_own_alone() -> None:
    assert defaults(BrainDataModule)["crop"] == 160
    assert defaults(DATAMODULES["camvid"])["crop"] == (240, 320)
    assert defaults(DATAMODULES["folder"])["crop"] == 256
    assert defaults(ShapesDataModule)["crop"] is None and defaults(ShapesDataModule)["batch_size"] == 4
    assert BrainDataModule(crop=8).transform.crop == (8, 8) and BrainDataModule().transform.crop == (160, 160)


def test_a_data_set_may_add_an_argument_to_those_of_another() -> None:
    class Folds(FolderDataModule):
        def __init__(self, *root: str, fold: int = 0, **loading: Any) -> None:
            super().__init__(*root, **loading)

    assert arguments(Folds) == ["root", "fold", *arguments(FolderDataModule)[1:]]


def test_what_a_data_set_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(
        TypeError, match=r"BrainDataModule got an unexpected keyword argument 'crpo': it takes crop, zoom"
    ):
        BrainDataModule(crpo=8)
    with pytest.raises(TypeError, match="ShapesDataModule got an unexpected keyword argument 'scale'"):
        ShapesDataModule(scale=0.5)  # its `size` is that


def test_a_scale_of_nothing_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="scale must be more than 0, got 0"):
        BrainDataModule(scale=0)
