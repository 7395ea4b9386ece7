"""The arguments of a module, each declared once: its own, those of its network and the fields of its recipe.

`SegmentationModule` composes them to the signature of every module. `inspect.signature`, `help`, the defaults of a
`Run` and the command line read them there, and what each means in the `Args:` of the class that declares it.
"""

import inspect
import re
from dataclasses import fields
from typing import Any

from lightning_modules.recipe import Recipe


def keywords(cls: type) -> dict[str, inspect.Parameter]:
    """The keyword arguments that the constructor of `cls` declares, by name."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def composed(module: Any, base: type) -> inspect.Signature:
    """The signature of `module`: what it, its bases up to `base`, its network and its recipe declare, but for `hidden`.

    A later class goes before its bases, and a module before its network.
    TypeError for arguments that would be set past it.
    """
    _check(module, 2, "num_classes and ignore_index")
    _check(module.network_class, 2, "num_classes and in_channels")
    of_network = {*keywords(module.network_class)} - {*module.hidden}
    if both := sorted(of_network & {field.name for field in fields(Recipe)}):
        raise TypeError(f"{module.network_class.__name__} must name {both[0]} otherwise: the recipe of a module has it")
    of_recipe = []
    for field in fields(Recipe):
        default = getattr(module.recipe, field.name)
        # Only a paper whose rate depends on other settings leaves it to the module: elsewhere it is a number.
        kind = float if field.name == "lr" and default is not None else field.type
        of_recipe.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        )
    classes = [*(cls for cls in module.__mro__ if issubclass(cls, base)), module.network_class]
    named: dict[str, inspect.Parameter] = {}
    for parameter in (*(p for cls in classes for p in keywords(cls).values()), *of_recipe):
        if parameter.name not in module.hidden:
            named.setdefault(parameter.name, parameter)
    _, num_classes, ignore_index, *_ = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
    return inspect.Signature([num_classes, ignore_index, *named.values()])


def _check(cls: type, count: int, first: str) -> None:
    """TypeError unless all arguments of the constructor but the first are keyword-only, as `keywords` reads them."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    for parameter in parameters[count:]:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"{cls.__name__} must take {parameter.name} by its name alone, behind *, after {first}")


def explanations(*classes: type) -> dict[str, str]:
    """What the `Args:` of the docstrings say of each argument, in one line; of two, the last class's."""
    told = {}
    for cls in classes:
        _, _, block = (inspect.getdoc(cls) or "").partition("Args:\n")
        block = re.split(r"\n(?=\S)", block)[0]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n      .*)*)", block, re.MULTILINE):
            told[name] = " ".join(text.split())
    return told
