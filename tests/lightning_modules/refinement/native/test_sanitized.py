"""Both kernels under AddressSanitizer and UndefinedBehaviorSanitizer: no access outside an array, nothing undefined."""

import os
import subprocess
from pathlib import Path

import pytest

from lightning_modules.refinement import native

KERNELS = Path(native.__file__).parent
# Not optimised: it compiles in a third of the time, and no check is optimised away. FLAGS, as the kernels are meant for
# them.
FLAGS = [flag for flag in native.FLAGS if flag not in ("-O3", "-fPIC", "-shared")]
SANITIZERS = ["-O0", "-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def build(folder: Path, *sources: Path, flags: tuple[str, ...] = ()) -> Path:
    """The program of these sources; a test without a compiler that has the sanitizers is skipped."""
    compiler = native._compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler (c++, g++, clang++)")
    (folder / "probe.cpp").write_text("int main() {}")
    command = [*compiler, *FLAGS, native.NATIVE, *SANITIZERS, *flags]
    probe = subprocess.run(
        [*command, folder / "probe.cpp", "-o", folder / "probe"], capture_output=True, text=True, check=False
    )
    if probe.returncode or subprocess.run([folder / "probe"], check=False).returncode:
        pytest.skip(f"{compiler[0]} has no sanitizers: {probe.stderr.strip()[:200]}")
    subprocess.run([*command, *sources, "-o", folder / "program"], check=True, timeout=native.SECONDS)
    return folder / "program"


def run(program: Path, calls: int) -> subprocess.CompletedProcess[str]:
    # Leaks are looked for by other means than memory errors, which containers often forbid.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [program, str(calls)], capture_output=True, text=True, check=False, env=environment, timeout=native.SECONDS
    )


@pytest.mark.parametrize(("kernel", "computed"), [("dense", 100), ("conv", 300)])
def test_a_few_hundred_calls_do_nothing_undefined(tmp_path: Path, kernel: str, computed: int) -> None:
    driver = Path(__file__).with_name("sanitized.cpp")
    done = run(build(tmp_path, driver, KERNELS / f"{kernel}_crf.cpp", flags=(f"-D{kernel.upper()}",)), 300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= computed  # deviations that the lattice cannot hold are refused


FAULTS = {
    "lanes beyond the image": ("lane = count; lane", "lane = kLanes; lane", "signed integer overflow"),
    "a pixel too many": (
        "std::memcpy(&v, source, count *",
        "std::memcpy(&v, source, (count + 1) *",
        "AddressSanitizer",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(tmp_path: Path, fault: str) -> None:
    right, wrong, words = FAULTS[fault]
    source = (KERNELS / "dense_crf.cpp").read_text()
    assert source.count(right) == 1
    (tmp_path / "dense_crf.cpp").write_text(source.replace(right, wrong))
    driver = Path(__file__).with_name("sanitized.cpp")
    done = run(build(tmp_path, driver, tmp_path / "dense_crf.cpp", flags=("-DDENSE",)), 300)
    assert done.returncode != 0 and words in done.stderr
