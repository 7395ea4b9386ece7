"""What is installed: Python, torch and torchvision, the other packages and the extras, and a compiler."""

import configparser
import importlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.machines.finding import Finding, ok, warning, wrong
from experiments.shell.helps import ROOT
from lightning_modules.components.compiler import WAY_OUT, compiler

REINSTALL = "python -m pip install --force-reinstall torch torchvision --constraint constraints.txt"
INSTALL = "python -m pip install --requirement requirements.txt --constraint constraints.txt"
OLDEST, NEWEST = (3, 11), (3, 13)  # of Python; later ones are not tested
# What each extra of setup.cfg is for.
EXTRAS = {
    "bands": "16-bit and many-band images",
    "browser": "tests of the page of a report in a browser",
    "cluster": "grids on many machines",
    "energy": "--energy, the energy of a training",
    "export": "networks as ONNX",
    "gcs": "runs and images in gs://",
    "geo": "GeoTIFF, for experiments.predict",
    "medical": "NIfTI volumes, for experiments.predict",
    "notebooks": "notebooks",
    "oracle": "comparison with other CRFs and mattings",
    "overlap": "tiles with overlap, for experiments.predict",
    "pretrained": "ImageNet weights without a download",
    "polygons": "polygon annotations",
    "soft": "soft segmentation",
    "s3": "runs and images in s3://",
    "tensorboard": "--logger tensorboard",
    "wandb": "experiments.dashboard",
}


def python(running: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    said = f"Python {'.'.join(map(str, running))}"
    oldest, newest = (".".join(map(str, limit)) for limit in (OLDEST, NEWEST))
    if running[:2] < OLDEST:
        return wrong(f"{said} is too old", f"make a new environment with Python {oldest} to {newest}")
    if running[:2] > NEWEST:
        return warning(f"{said} is newer than what is tested", f"take Python {oldest} to {newest} if something fails")
    return ok(said)


def torch_build(*, driver: bool) -> Finding:
    """Whether torch can be imported, and is the build for a GPU where this machine has the `driver` of one."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        return wrong(f"{error}", INSTALL)
    except (ImportError, OSError) as error:
        return wrong(f"torch cannot be imported: {_first_line(error)}", REINSTALL)
    build = next((f"{kind} {v}" for kind in ("cuda", "hip") if (v := getattr(torch.version, kind, None))), "")
    said = f"torch {torch.__version__}, built for {build.replace('cuda', 'CUDA').replace('hip', 'ROCm') or 'the CPU'}"
    if driver and not build:
        return wrong(f"{said}, on a machine with an NVIDIA driver: no GPU is used", REINSTALL)
    return ok(said)


def torchvision_build(folder: Path | None = None) -> Finding:
    """Whether the operators of torchvision, in its `folder`, fit this torch; to import all of it takes a second.

    Beside a torch of another build they cannot be loaded, and then every import fails with `operator torchvision::nms
    does not exist`.
    """
    spec = None if folder else find_spec("torchvision")
    if folder is None and (spec is None or not spec.submodule_search_locations):
        return wrong("torchvision is not installed, which lightning and torchmetrics import", INSTALL)
    folder = folder or Path(spec.submodule_search_locations[0])  # type: ignore[union-attr, index]
    torch: Any = importlib.import_module("torch")
    said = f"torchvision {_installed('torchvision')}"
    libraries = [path for path in sorted(folder.glob("_C*")) if path.suffix in (".so", ".pyd", ".dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
        exists = hasattr(torch.ops.torchvision, "nms")
        number = int(torch.ops.torchvision._cuda_version()) if exists else -1
    except (OSError, RuntimeError, AttributeError) as error:
        why = f"{_first_line(error)}: operator torchvision::nms does not exist"
        return wrong(f"{said} does not fit torch {torch.__version__} ({why})", REINSTALL)
    if not libraries or not exists:
        return wrong(f"{said} does not fit torch {torch.__version__}: it has no operator nms", REINSTALL)
    of_torch = torch.version.cuda
    if number > 0 and of_torch and number // 1000 != int(of_torch.split(".")[0]):
        return wrong(f"{said} is for CUDA {number // 1000}, torch for CUDA {of_torch}", REINSTALL)
    return ok(f"{said} fits it, built for {f'CUDA {number // 1000}' if number > 0 else 'the CPU'}")


def packages(lines: Sequence[str], tested: Mapping[str, str]) -> list[Finding]:
    """The requirements that are not met; where all are, which of them have another version than the `tested` ones."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, others = list[Finding](), []
    needed = [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in needed:
        has = _installed(need.name)
        if not has:
            found.append(wrong(f"{need.name} is not installed", INSTALL))
        elif not need.specifier.contains(has, prereleases=True):
            found.append(wrong(f"{need.name} {has} is installed, and {need} is needed", INSTALL))
        elif (exact := tested.get(canonicalize_name(need.name), has)) not in (has, has.split("+")[0]):
            others.append(f"{need.name} {has} ({exact})")
    more = f"; others than the tested versions, which are in brackets: {', '.join(others)}" if others else ""
    return found or [ok(f"{len(needed)} requirements are met{more}")]


def requirements(root: Path = ROOT) -> list[str]:
    """Those of requirements.txt, or of the installed package where there is no checkout."""
    path = root / "requirements.txt"
    if not path.is_file():
        return [line for line in requires("seglab") or [] if "extra ==" not in line]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]


def constraints(root: Path = ROOT) -> dict[str, str]:
    """The exact versions of constraints.txt, by name; empty where there is no checkout."""
    path = root / "constraints.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): exact for name, exact in found}


def extras_of(root: Path = ROOT) -> dict[str, list[str]]:
    """The requirements of each extra but `dev`, which has them all; empty where there is no checkout."""
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    if not parser.has_section("options.extras_require"):
        return {}
    of_all = {name: [*filter(None, text.splitlines())] for name, text in parser["options.extras_require"].items()}
    return {name: lines for name, lines in of_all.items() if name != "dev"}


def extras(of_all: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Which extras are there, which are not and what for, and which are there in part or too old."""
    from packaging.requirements import Requirement

    there, missing, found = [], [], list[Finding]()
    for name, lines in of_all.items():
        needed = [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate()]
        has = [need for need in needed if _installed(need.name)]
        bad = [need for need in has if not need.specifier.contains(_installed(need.name), prereleases=True)]
        if bad:
            versions = ", ".join(f"{need} ({_installed(need.name)} is installed)" for need in bad)
            found.append(warning(f"{name} needs {versions}", f'pip install -e ".[{name}]"'))
        elif len(has) == len(needed):
            there.append(name)
        else:
            missing.append(f"{name} ({EXTRAS[name]})")
    said = f"installed: {', '.join(there) or 'none'}"
    if missing:
        said += f'; pip install -e ".[NAME]" has {", ".join(missing)}'
    return [ok(said), *found]


def a_compiler() -> Finding:
    """Of C++, for compiled CRFs and `torch.compile`, with the header that the latter includes."""
    words = compiler()
    if words is None:
        return warning("no C++ compiler: CRFs are slower, and torch.compile fails", WAY_OUT)
    try:
        done = subprocess.run([*words, "--version"], capture_output=True, encoding="utf-8", timeout=2, check=True)
        said = done.stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return warning(f"{words[0]} --version fails ({error}): CRFs are slower, and torch.compile fails", WAY_OUT)
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        mend = "install Python's headers (Debian: apt install python3-dev) if you compile networks"
        return warning(f"{said}; torch.compile fails without Python.h, which is not there", mend)
    return ok(said)


def _installed(name: str) -> str:
    try:
        return version(name)
    except (PackageNotFoundError, KeyError):  # the latter of one whose description is damaged
        return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
