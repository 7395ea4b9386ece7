"""Of a machine that lacks something, what is said and how it is mended."""

import math
from pathlib import Path

import pytest

from experiments.machines import hardware
from experiments.machines.finding import Finding
from experiments.machines.hardware import GIB, MIB, Gpu, no_gpu, one_gpu
from experiments.shell import cgroup

BUILT = ["sm_75", "sm_80", "sm_90", "compute_90"]


@pytest.mark.parametrize(
    ("arguments", "state", "said", "mend"),
    [
        ((False, "13.2", 0, {}, False), "ok", "on the CPU", ""),
        ((True, None, 0, {}, True), "warning", "built for the CPU", "line of torch"),
        ((True, "13.2", 13020, {"CUDA_VISIBLE_DEVICES": ""}, True), "warning", "hides all", "unset CUDA_VISIBLE"),
        ((True, "13.2", 13020, {"CUDA_VISIBLE_DEVICES": "-1"}, True), "warning", "hides all", "unset CUDA_VISIBLE"),
        ((True, "13.2", 13020, {}, False), "warning", "container", "--gpus all"),
        ((True, "13.2", 12040, {}, True), "wrong", "knows CUDA 12.4", "a torch that is built for CUDA 12.4"),
        ((True, "13.2", 13020, {"CUDA_VISIBLE_DEVICES": "0"}, True), "wrong", "torch sees none", "nvidia-smi"),
    ],
)
def test_why_there_is_no_gpu(arguments: tuple[object, ...], state: str, said: str, mend: str) -> None:
    *given, has_node = arguments
    found = no_gpu(*given, has_node=has_node)  # type: ignore[arg-type]
    assert found.state == state and said in found.said and mend in found.mend


@pytest.mark.parametrize(
    ("gpu", "state", "said", "mend"),
    [
        (Gpu("A", 80 * GIB, math.nan, (9, 0)), "ok", "0: A, 80 GiB, sm_90", ""),
        (Gpu("A", 80 * GIB, 1.0, (8, 6)), "ok", "sm_86", ""),  # that of 8.0 runs on it
        (Gpu("A", 80 * GIB, 1.0, (12, 0)), "ok", "sm_120", ""),  # compiled from the portable code of 9.0
        (Gpu("A", 80 * GIB, 1.0, (7, 0)), "wrong", "no kernel image", "older one for an older GPU"),
        (Gpu("A", 80 * GIB, 60 * GIB, (9, 0)), "warning", "60 GiB of it are in use", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu(gpu: Gpu, state: str, said: str, mend: str) -> None:
    found = one_gpu(0, gpu, BUILT)
    assert found.state == state and said in found.said and mend in found.mend


def test_a_later_gpu_needs_portable_code() -> None:
    assert one_gpu(0, Gpu("A", GIB, 0.0, (12, 0)), ["sm_90"]).state == "wrong"


@pytest.mark.gpu
def test_the_gpus_of_this_machine() -> None:
    first = hardware.gpus(True, {})[0]
    assert first.said.startswith("0: ") and "driver" in first.said


def test_nvidia_smi_is_read_by_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-ab-12, 512, 580.1'\necho 'GPU-cd-34, 7, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert hardware.smi(hardware.SMI) == {"ab-12": ["512", "580.1"], "cd-34": ["7", "580.1"]}
    program.write_text("#!/bin/sh\nexit 9\n")
    assert hardware.smi(hardware.SMI) == {}


def test_processes() -> None:
    assert "one with --trainer.devices 1" in hardware.links(2, has_nccl=False, has_gloo=True).mend
    assert hardware.links(2, has_nccl=False, has_gloo=True).state == "wrong"
    assert hardware.links(1, has_nccl=False, has_gloo=True).state == "ok"
    assert "CPU processes cannot" in hardware.links(1, has_nccl=True, has_gloo=False).said
    assert hardware.nccl().state == "ok"


@pytest.mark.parametrize(
    ("total", "free", "state"), [(64 * MIB, 64 * MIB, "wrong"), (8 * GIB, 9 * MIB, "warning"), (8 * GIB, GIB, "ok")]
)
def test_shared_memory(total: int, free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda _: usage(total, total - free, free))
    found = hardware.shared_memory(tmp_path)
    assert found.state == state
    assert state == "ok" or ("--shm-size" in found.mend and "--data.num_workers 0" in found.mend)
    assert hardware.shared_memory(tmp_path / "none").state == "ok"


def group(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """The folder of control groups with these files in it, and what the process says of its own."""
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    return tmp_path / "cgroup", tmp_path / "own"


def test_limits_of_a_job(tmp_path: Path) -> None:
    """Version 2, as SLURM makes them: the limit stands in a group above the process's own."""
    files = {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n", "job/memory.max": f"{3 * GIB}\n"}
    files |= {"job/step/memory.max": "max\n", "job/memory.current": f"{2 * GIB}\n", "memory.stat": ""}
    places = group(tmp_path, "0::/job/step\n", files)
    assert cgroup.cpu_quota(*places) == 1.5
    assert cgroup.memory_limit(*places) == 3 * GIB and cgroup.memory_left(*places) == GIB


def test_limits_of_version_1_in_a_container(tmp_path: Path) -> None:
    """Its own name is that of the machine, which the container does not see."""
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    files |= {"memory/memory.limit_in_bytes": str(2 * GIB), "memory/memory.usage_in_bytes": str(GIB // 2)}
    places = group(tmp_path, "5:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n2:pids:/docker/ab\n", files)
    assert cgroup.cpu_quota(*places) == 2
    assert cgroup.memory_limit(*places) == 2 * GIB and cgroup.memory_left(*places) == 1.5 * GIB


def test_no_limits(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    files |= {"memory/memory.limit_in_bytes": str(2**63 - 4096)}
    for places in (group(tmp_path, "5:memory:/\n3:cpu:/\n", files), (tmp_path, tmp_path / "none")):
        assert cgroup.cpu_quota(*places) == cgroup.memory_limit(*places) == cgroup.memory_left(*places) == math.inf


def test_cpus(tmp_path: Path) -> None:
    found = hardware.cpus_of(16, 8, 2.0, "")
    assert found.state == "warning" and "16, of which this process may run on 8" in found.said
    assert found.mend == "OMP_NUM_THREADS=2, and --jobs 2 for a grid"
    assert hardware.cpus_of(16, 8, 2.0, "2").state == hardware.cpus_of(16, 8, math.inf, "").state == "ok"
    places = group(tmp_path, "0::/\n", {"cpu.max": "50000 100000"})
    assert hardware.cpus({}, *places).mend.startswith("OMP_NUM_THREADS=1")


def test_memory(tmp_path: Path) -> None:
    found = hardware.memory_of(2 * GIB, 3 * GIB)
    assert found.state == "warning" and "--mem" in found.mend and "limited to 3.0 GiB" in found.said
    assert hardware.memory_of(GIB / 2, math.inf).state == "wrong"
    assert hardware.memory_of(math.inf, math.inf).state == hardware.memory_of(8 * GIB, math.inf).state == "ok"
    assert "512 MiB" in hardware.memory(*group(tmp_path, "0::/\n", {"memory.max": str(GIB // 2)})).said


@pytest.mark.parametrize(
    ("soft", "hard", "mend"),
    [(256, 4096, "ulimit -n 4096"), (256, -1, "ulimit -n 65536"), (256, 256, "limits.conf"), (1024, 1024, "")],
)
def test_open_files(soft: int, hard: int, mend: str) -> None:
    found = hardware.descriptors_of(soft, hard)
    assert mend in found.mend and found.state == ("warning" if mend else "ok")
    assert isinstance(hardware.descriptors(), Finding)
