"""Each hyperparameter stands once: in the network, in the recipe or in the module, and nobody passes it on by hand."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn

from lightning_modules import base
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES, NETWORKS
from lightning_modules.components import blocks, losses, pyramid, schedules, upsampling
from lightning_modules.components.encoders import resnet, vgg
from lightning_modules.crf_as_rnn import CRFS, CRFName
from lightning_modules.deeplabv1 import FIELDS_OF_VIEW, FieldOfView
from lightning_modules.recipe import Recipe
from lightning_modules.segnet import VARIANTS, BasicName, SegNetName
from lightning_modules.settings import explanations, keywords

RECIPE = {field.name for field in fields(Recipe)}
PACKAGE = Path(base.__file__).parent


def declared_elsewhere(cls: type[SegmentationModule]) -> set[str]:
    """What a module need not declare: arguments of its network and its base, and fields of the recipe."""
    return {*keywords(cls.network_class), *keywords(SegmentationModule), *RECIPE} - {*cls.hidden}


def repeated(source: str, elsewhere: set[str]) -> Iterator[str]:
    """The names of `elsewhere` that the class in `source` declares, assigns or passes on."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            declared = [*node.args.args, *node.args.kwonlyargs]
            yield from (argument.arg for argument in declared if argument.arg in elsewhere)
        elif isinstance(node, ast.ClassDef):
            targets = [t for s in node.body for t in (s.targets if isinstance(s, ast.Assign) else ())]
            targets += [s.target for s in node.body if isinstance(s, ast.AnnAssign) and s.value is not None]
            yield from (target.id for target in targets if isinstance(target, ast.Name) and target.id in elsewhere)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") != "Recipe":
            passed = [keyword.arg for keyword in node.keywords]
            forwards = None in passed  # **settings or **options go on
            yield from (name for name in passed if forwards and name in elsewhere)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_module_declares_only_what_is_its_own(name: str) -> None:
    cls = ARCHITECTURES[name].module
    assert list(repeated(inspect.getsource(cls), declared_elsewhere(cls))) == []


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("    def __init__(self, *, width: int = 4, **settings): ...", "width"),
        ("    def __init__(self, *, lr: float = 1.0, **settings): ...", "lr"),
        ("    lr = 0.1", "lr"),
        ("    momentum: float = 0.1", "momentum"),
        ("    def build(self, **options):\n        return UNet(3, width=options.pop('width'), **options)", "width"),
        ("    def __init__(self, **settings):\n        super().__init__(in_channels=3, **settings)", "in_channels"),
    ],
)
def test_a_second_declaration_would_be_noticed(body: str, name: str) -> None:
    source = f"class AnotherModule(SegmentationModule):\n{body}\n"
    assert list(repeated(source, declared_elsewhere(ARCHITECTURES["unet"].module))) == [name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_paper_imports_another(name: str) -> None:
    papers = {architecture.path.split(".")[0] for architecture in ARCHITECTURES.values()}
    tree = ast.parse((PACKAGE / f"{ARCHITECTURES[name].path.split('.')[0]}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {f"lightning_modules.{paper}" for paper in papers} & imported == set()


def test_a_name_that_a_module_does_not_have_is_refused() -> None:
    module = ARCHITECTURES["unet"].module
    with pytest.raises(TypeError, match="UNetModule got an unexpected keyword argument 'widht'; did you mean width"):
        module(3, 255, widht=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'decoder_widths'"):  # hidden
        module(3, 255, width=4, depth=2, decoder_widths=(4, 8))
    with pytest.raises(ValueError, match=r"lr must be a number, got None: UNetModule has one rate, 0\.001"):
        module(3, 255, width=4, depth=2, lr=None)


def test_the_signature_holds_own_arguments_and_those_of_network_and_recipe() -> None:
    class Network(nn.Module):
        def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 1, inner: int = 2) -> None:
            super().__init__()
            self.head = nn.Conv2d(in_channels, num_classes, width)

    class Module(SegmentationModule):
        network: Network
        recipe = Recipe(lr=0.5)
        hidden = ("inner",)

        def __init__(self, num_classes: int, ignore_index: int, *, own: str = "x", **settings: Any) -> None:
            super().__init__(num_classes, ignore_index, **settings)

    found = inspect.signature(Module).parameters
    assert {*found} == {"num_classes", "ignore_index", "own", "in_channels", "width"} | RECIPE
    assert (found["own"].default, found["width"].default, found["lr"].default) == ("x", 1, 0.5)
    module = Module(3, 255, width=5)
    assert module.network.head.kernel_size == (5, 5)
    assert {**module.hparams} == {**module.hparams_initial}
    assert module.hparams == {
        **{field.name: getattr(Module.recipe, field.name) for field in fields(Recipe)},
        "num_classes": 3,
        "ignore_index": 255,
        "in_channels": 3,
        "own": "x",
        "width": 5,
    }


def test_a_module_of_a_module_takes_what_its_base_takes() -> None:
    unet: Any = ARCHITECTURES["unet"].module

    class Later(unet):  # type: ignore[misc]
        def __init__(self, num_classes: int, ignore_index: int, *, later: int = 1, **settings: Any) -> None:
            super().__init__(num_classes, ignore_index, **settings)

    assert {*inspect.signature(Later).parameters} == {*inspect.signature(unet).parameters, "later"}
    assert Later(3, 255, width=2, depth=1, padding="valid", tile=4).tile == 4


class Positional(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 4) -> None:
        super().__init__()


class Momentous(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 3, *, momentum: float = 0.3) -> None:
        super().__init__()


def test_arguments_that_would_be_set_past_the_signature_are_refused() -> None:
    unet: Any = ARCHITECTURES["unet"].module
    with pytest.raises(TypeError, match="Later must take width by its name alone, behind \\*"):

        class Later(unet):  # type: ignore[misc]
            def __init__(self, num_classes: int, ignore_index: int, width: int = 32, **settings: Any) -> None:
                super().__init__(num_classes, ignore_index, width=width, **settings)

    with pytest.raises(TypeError, match="Positional must take width by its name alone"):

        class OfPositional(SegmentationModule):
            network: Positional

    with pytest.raises(TypeError, match="Momentous must name momentum otherwise: the recipe of a module has it"):

        class OfMomentous(SegmentationModule):
            network: Momentous


def test_a_module_without_a_network_says_how_to_name_one() -> None:
    with pytest.raises(TypeError, match="SegmentationModule names no network: annotate it in the class"):
        SegmentationModule(3, 255)


def test_the_last_class_explains_an_argument() -> None:
    class First:
        """Text.

        Args:
            one: of the first
                in two lines
            two: of the first

        More: text.
        """

    class Second:
        """Text without arguments: none.

        Args:
            two: of the second
        """

    assert explanations(First, Second, int) == {"one": "of the first in two lines", "two": "of the second"}


@pytest.mark.parametrize(
    ("choices", "table"),
    [
        (losses.LossName, losses.LOSSES),
        (schedules.OptimizerName, schedules.OPTIMIZERS),
        (schedules.ScheduleName, schedules.SCHEDULES),
        (blocks.NormName, blocks.NORMS),
        (pyramid.PoolName, pyramid.POOLS),
        (upsampling.UpsamplingName, upsampling.UPSAMPLING),
        (vgg.VggNorm, vgg.PRETRAINED),
        (resnet.Form, resnet.FORMS),
        (FieldOfView, FIELDS_OF_VIEW),
        (BasicName, VARIANTS),
        (SegNetName, ("segnet", *VARIANTS)),
        (CRFName, CRFS),
    ],
)
def test_the_choices_are_the_keys_of_the_table(choices: Any, table: Any) -> None:
    assert get_args(choices) == tuple(table)


def test_every_entry_of_the_catalogue_names_its_file_and_its_network() -> None:
    for name, architecture in ARCHITECTURES.items():
        assert architecture.path.split(".")[0] == name
        assert issubclass(architecture.module, SegmentationModule)
    for architecture in NETWORKS.values():
        assert {*architecture.options} <= {*keywords(architecture.network)}
    of_network = inspect.signature(ARCHITECTURES["pointrend"].module).parameters["network"].annotation
    assert get_args(of_network) == tuple(NETWORKS)


def test_the_signature_of_the_base_is_that_of_the_recipe() -> None:
    assert {*inspect.signature(SegmentationModule).parameters} == {
        "num_classes",
        "ignore_index",
        "in_channels",
    } | RECIPE
