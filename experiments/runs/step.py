"""A step: what is done with trained weights instead of a training, by a name that `STEPS` knows."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lightning_modules.base import plain

# The module and the function of each, imported when it is carried out: some stand in a room above this one. A function
# gets a `scoring.Task` and the options. It returns the module that is to be scored on the test split, and by name what
# it has found.
STEPS = {
    "average": ("experiments.runs.averaging", "average_of"),
    "crf": ("experiments.crfs.behind", "crf_behind"),
}
CHOOSING = ("crf",)  # those that choose something on validation images, which must not be those that are scored


@dataclass(frozen=True)
class Step:
    """The step `name` with these options, which are plain data and part of a run's hash.

    Raises ValueError for a name that is none of `STEPS`, and for options that are no plain data.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in STEPS:
            near = difflib.get_close_matches(str(self.name), STEPS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"step must be one of {', '.join(STEPS)}, got {self.name!r}{hint}")
        object.__setattr__(self, "options", plain(self.options, "step"))

    def work(self) -> Callable[..., Any]:
        """The function that does it."""
        module, name = STEPS[self.name]
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function

    def check(self) -> None:
        """Raises ValueError for options that are not those of its function."""
        try:
            inspect.signature(self.work()).bind(None, **self.options)
        except TypeError as error:
            raise ValueError(f"the step {self.name!r} got the options {dict(self.options)}: {error}") from error
