"""Of packages that are missing, too old, or built for another torch, what is said and how it is mended."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.machines import software
from experiments.machines.software import EXTRAS, INSTALL, REINSTALL


def test_python() -> None:
    assert "Python 3.11 to 3.13" in software.python((3, 10, 2)).mend and software.python((3, 10, 2)).state == "wrong"
    assert software.python((3, 15, 0)).state == "warning" and software.python((3, 12, 1)).state == "ok"


def test_torch_of_the_cpu_beside_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = software.torch_build(driver=True)
    assert found.state == "wrong" and found.mend == REINSTALL and "no GPU is used" in found.said
    assert software.torch_build(driver=False).state == "ok"


@pytest.mark.parametrize(
    ("error", "mend"),
    [(ModuleNotFoundError("No module named 'torch'"), INSTALL), (OSError("libcudart.so.13: cannot open"), REINSTALL)],
)
def test_torch_that_cannot_be_imported(error: Exception, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    found = software.torch_build(driver=False)
    assert found.state == "wrong" and found.mend == mend and str(error) in found.said


def test_torchvision_of_this_environment() -> None:
    assert software.torchvision_build().state == "ok"


def test_torchvision_of_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be loaded, as that for CUDA beside the CPU wheel of torch; none; one for another CUDA."""
    (tmp_path / "_C.so").write_bytes(b"no library")
    found = software.torchvision_build(tmp_path)
    assert found.state == "wrong" and found.mend == REINSTALL
    assert "operator torchvision::nms does not exist" in found.said
    (tmp_path / "_C.so").unlink()
    assert "has no operator nms" in software.torchvision_build(tmp_path).said
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    if torch.ops.torchvision._cuda_version() > 0:
        assert "torch for CUDA 11.8" in software.torchvision_build().said


def test_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "find_spec", lambda _: None)
    assert software.torchvision_build().mend == INSTALL


def test_packages() -> None:
    too_old, missing = software.packages(["pytest>=999", "no-such-package>=1", "pillow>=1"], {})
    assert too_old.state == missing.state == "wrong" and too_old.mend == INSTALL
    assert "pytest>=999 is needed" in too_old.said and missing.said == "no-such-package is not installed"
    (other,) = software.packages(["pillow>=1", 'none>=1; python_version < "3"'], {"pillow": "1.0"})
    assert other.state == "ok" and other.said.endswith("(1.0)") and other.said.startswith("1 requirements are met")


def test_the_requirements_of_this_checkout(tmp_path: Path) -> None:
    assert any(line.startswith("torch>=") for line in software.requirements())
    assert software.constraints()["segmentation-models-pytorch"]
    assert software.constraints(tmp_path) == software.extras_of(tmp_path) == {}


def test_each_extra_says_what_it_is_for() -> None:
    assert {*software.extras_of()} <= {*EXTRAS}


def test_extras() -> None:
    of_all = {"geo": ["no-such-package>=1"], "soft": ["pytest>=1"], "bands": ["pytest>=999"]}
    told, bad = software.extras(of_all)
    assert told.state == "ok" and told.said == (
        'installed: soft; pip install -e ".[NAME]" has geo (GeoTIFF, for experiments.predict)'
    )
    assert bad.state == "warning" and bad.mend == 'pip install -e ".[bands]"' and "pytest>=999" in bad.said


def test_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = software.a_compiler()
    assert found.state == "warning" and "apt install g++" in found.mend
    monkeypatch.setenv("CXX", "false")
    assert "--version fails" in software.a_compiler().said
    monkeypatch.setenv("CXX", "echo")
    monkeypatch.setattr(software.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "python3-dev" in software.a_compiler().mend
    (tmp_path / "Python.h").touch()
    assert software.a_compiler().state == "ok"


def test_what_it_imports_at_its_start_is_no_torch() -> None:
    code = "import sys, experiments.doctor; print(*{'torch', 'lightning', 'numpy', 'rich'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
