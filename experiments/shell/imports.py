"""Faults of an environment in packages that others import: repaired, or reported in one line."""

import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType


def import_matplotlib() -> None:
    """Imports it also where MPLBACKEND names no backend, or a matplotlibrc is no text, as torchmetrics imports it too.

    Its own matplotlibrc then stands for the user's, which changes no figure: see `figures.looks.drawing`.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:  # whoever needs it says so, and experiments.doctor says all that is missing
        pass
    except (ValueError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]
        os.environ.pop("MPLBACKEND", None)
        (place,) = find_spec("matplotlib").submodule_search_locations  # type: ignore[union-attr, misc]
        os.environ["MATPLOTLIBRC"] = str(Path(place, "mpl-data", "matplotlibrc"))


def name_torchvision(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A hook for errors that end a command: where torchvision cannot be imported, a line says what to install.

    Lightning and torchmetrics import it, so that a build for another torch fails in many places, each with its own
    words.
    """
    places = [Path(frame.filename) for frame in traceback.extract_tb(trace)]
    inside = any(place.parent.name == "torchvision" and place.name == "__init__.py" for place in places)
    if not inside and not (isinstance(error, ModuleNotFoundError) and error.name == "torchvision"):
        sys.__excepthook__(kind, error, trace)
        return
    versions = {}
    for name in ("torchvision", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "(not installed)"
    sys.stderr.write(
        f"error: torchvision {versions['torchvision']} does not fit torch {versions['torch']} ({error}): install the "
        "two that belong together, python -m pip install --force-reinstall torch torchvision --constraint "
        "constraints.txt\n"
    )
    sys.exit(2)
