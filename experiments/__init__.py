"""Runs, ablations and reports: `python -m experiments.<verb>`."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def _import_matplotlib() -> None:
    """Imports it also where MPLBACKEND names no backend, or a matplotlibrc is no text, as torchmetrics imports it too.

    Its own matplotlibrc then stands for the user's, which changes no figure: see `figures.looks.drawing`.
    """
    try:
        import matplotlib  # noqa: F401
    except (ValueError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]
        os.environ.pop("MPLBACKEND", None)
        (place,) = find_spec("matplotlib").submodule_search_locations  # type: ignore[union-attr, misc]
        os.environ["MATPLOTLIBRC"] = str(Path(place, "mpl-data", "matplotlibrc"))


_import_matplotlib()
