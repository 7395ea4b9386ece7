"""What a number depends on beside its `Run`: the code, the versions, the machine and the command.

Code and versions are those that run, whatever repository or environment surrounds them.
"""

import hashlib
import os
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.shell.difference import PATCH, Difference, difference
from experiments.shell.files import write_atomic, write_json

# The name of a distribution, and of the module that it installs.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "numpy": "numpy",
    "pillow": "PIL",
    "nilearn": "nilearn",
}
BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # in /proc/cpuinfo, the last one of ARM


def package_version(distribution: str, module: str | None = None) -> str:
    """The version of a package that runs: of the module where it is imported and is not the one that is installed.

    "unknown" for a package that is neither installed nor imported.
    """
    loaded = getattr(sys.modules.get(module or distribution), "__version__", None)
    try:
        installed = version(distribution)
    except (PackageNotFoundError, KeyError):  # the latter of one whose description is damaged
        return str(loaded or "unknown")
    # torch says of its build after a "+"
    shadowed = loaded is not None and str(loaded).split("+")[0] != installed.split("+")[0]
    return f"{loaded}, not the installed {installed}" if shadowed else installed


def command_line() -> str:
    """The command as a person would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def processor() -> str:
    """The model of the CPU, with what tells apart those of one name; no name of the machine."""
    found = _first_core()
    name = found.get("model name") or platform.processor() or platform.machine() or "unknown"
    keys = ("cpu family", "model", "cpu implementer", "cpu part")  # those of x86, those of ARM
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {found[key]}" for key in keys if found.get(key))
    return f"{name} ({numbers})" if numbers else name


def _first_core() -> dict[str, str]:
    """What the system says of it, by name in small letters ("model name"); empty where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def slow_precision(precision: object, device: str) -> str:
    """A line for bfloat16 on a CPU that cannot compute with it; empty for all else, and where that is not known.

    `device` is a type of torch's, "cpu" or "cuda". The instructions are looked up, because torch calls bfloat16
    supported also where oneDNN converts every number.
    """
    core = _first_core()
    able = {*core.get("flags", "").split(), *core.get("features", "").split()}  # those of x86, those of ARM
    if device != "cpu" or "bf16" not in str(precision) or not able or able & BF16:
        return ""
    return (
        f"--trainer.precision {precision}: this CPU has no bf16 instructions, so steps take longer than without the "
        "flag (8 times as long on one with AVX2): leave it out, or train on a GPU or a CPU with avx512_bf16 or amx_bf16"
    )


def blas() -> str:
    """The libraries that multiply matrices and convolve on the CPU, as torch was built with them and uses them."""
    import torch

    built = torch.__config__.show()
    libraries = {"BLAS": r"BLAS_INFO=(\w+)", "MKL": r"Math Kernel Library Version ([\d.]+)"}
    if torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        libraries["oneDNN"] = r"MKL-DNN v([\d.]+)"
    found = {name: match[1] for name, pattern in libraries.items() if (match := re.search(pattern, built))}
    return ", ".join(f"{name} {value}" for name, value in found.items()) or "unknown"


def software(code: Difference | None = None) -> dict[str, Any]:
    """What of `environment` is known without torch: the code that runs, Python and the system.

    `code` is the `difference` where it is known already. What differs from the commit is named by the SHA-256 of its
    patch, and by the files that the patch lacks.
    """
    code = code or difference()
    return {
        "commit": code.commit,
        **({"patch": hashlib.sha256(code.patch).hexdigest()} if code.patch else {}),
        **({"patch_lacks": code.lacks} if code.lacks else {}),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """The version of each of the packages that numbers depend on."""
    return {name: package_version(name, module) for name, module in PACKAGES.items()}


def environment(command: str | None = None, code: Difference | None = None) -> dict[str, Any]:
    """What environment.json holds; no host name or user; paths as the command has them; `code` as in `software`."""
    import torch

    return {
        "command": command or command_line(),
        **software(code),
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "blas": blas(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
    }


def write_environment(folder: Path, command: str | None = None, **known: Any) -> dict[str, Any]:
    """Writes environment.json and, where the code differs from its commit, the difference beside it as code.patch.

    `known` is what the caller knows better. Those of an earlier start of the same run are replaced. Returns what
    environment.json holds.
    """
    code = difference()
    made = environment(command, code) | known
    if code.patch:
        write_atomic(folder / PATCH, code.patch)
    write_json(folder / "environment.json", made)
    if not code.patch:
        (folder / PATCH).unlink(missing_ok=True)
    return made
