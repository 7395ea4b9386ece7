"""What a GPU says of this project, in at most 8 minutes: tests, throughput, CRFs, waiting for data, two cells at once.

python -m tests.gpu [--out experiments/results/gpu.md] [--only NAME ...] [--toy]

Each part has a process and a budget of its own: one that fails or takes too long is reported, and the next goes on.
Packages that are missing are taken from the wheels in build/gpu, see bundle.sh. --toy runs all of it at toy size on
any machine, to try the script: its numbers say nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "build" / "gpu"
# Seconds of each part, 450 in all: of 8 minutes some are left for the page, and for what a part takes to end.
BUDGETS = {"tests": 115, "networks": 140, "crfs": 30, "waiting": 120, "two": 45}
TOY_BUDGETS = {"tests": 60, "networks": 60, "crfs": 30, "waiting": 60, "two": 60}
Row = dict[str, Any]


def unpacked() -> list[str]:
    """The folder with what this Python lacks of the wheels, unpacked once; none where no bundle was carried."""
    wheels = sorted((BUNDLE / "wheels").glob("*.whl"))
    site = BUNDLE / "site"
    if not wheels:
        return []
    for wheel in wheels:
        done = site / f".{wheel.stem}"
        if not done.exists() and not _installed(wheel.name.split("-")[0]):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            done.touch()
    site.mkdir(exist_ok=True)
    return [str(site)]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def environment(toy: bool) -> dict[str, str]:
    path = [str(ROOT), *unpacked(), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return found | ({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if toy else {})


def run_part(name: str, seconds: float, toy: bool) -> tuple[list[Row], float]:
    """What a part recorded, the last row its failure where it had one, and the seconds that it took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="seglab-gpu-") as folder:
        rows, log = Path(folder, "rows"), Path(folder, "log")
        rows.touch()
        command = [sys.executable, "-m", "tests.gpu.parts", name, str(rows), str(seconds), *["--toy"] * toy]
        failure = ""
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(toy), stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait(seconds)
                failure = f"exit status {status}" if status else ""
            except subprocess.TimeoutExpired:
                failure = f"not done after {seconds:.0f} s"
            finally:
                _end(process)
        found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
        if failure:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            found.append({"failed": f"{failure}: {' / '.join(last)[-400:]}"})
    return found, time.monotonic() - started


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends the part and the processes that it started, which are in a session of their own."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


def table(rows: list[Row]) -> str:
    """Markdown: rows with the same columns one below the other; failures as sentences."""
    blocks: list[str] = []
    columns: list[str] = []
    for row in rows:
        if "failed" in row:
            blocks.append(f"\n**Failed:** {str(row['failed']).replace('|', '/')}")
            columns = []
            continue
        if [*row] != columns:
            columns = [*row]
            numbers = [isinstance(value, int | float) for value in row.values()]
            ruler = " | ".join("---:" if number else "---" for number in numbers)
            blocks.append(f"\n| {' | '.join(columns)} |\n| {ruler} |")
        blocks.append(f"| {' | '.join(_cell(value) for value in row.values())} |")
    return "\n".join(blocks)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value).replace("|", "/")


def machine(toy: bool) -> Row:
    """The device, versions and commit, asked in a process of its own, so that this one holds no GPU."""
    code = (
        "import json, torch, lightning; cuda = torch.cuda.is_available(); print(json.dumps({"
        "'device': torch.cuda.get_device_name() if cuda else 'CPU', 'torch': torch.__version__, "
        "'CUDA': torch.version.cuda if cuda else None, 'cuDNN': torch.backends.cudnn.version() if cuda else None, "
        "'lightning': lightning.__version__}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(toy), cwd=ROOT, capture_output=True, text=True, check=False
    )
    found: Row = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"device": "unknown"}
    return {**found, "Python": platform.python_version(), "cores": os.cpu_count(), "commit": commit()}


def commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    stored = BUNDLE / "commit"
    if asked.returncode == 0:
        return asked.stdout.strip()
    return stored.read_text(encoding="utf-8").strip()[:7] if stored.is_file() else "unknown"


def page(about: Row, command: str, parts: dict[str, tuple[list[Row], float]], describe: Callable[[str], str]) -> str:
    lines = ["# On a GPU" if about["device"] != "CPU" else "# On a CPU at toy size: its numbers say nothing", ""]
    lines += [f"`{command}`, on {', '.join(f'{name} {value}' for name, value in about.items() if value)}.", ""]
    for name, (rows, seconds) in parts.items():
        lines += [f"## {describe(name)}", table(rows) or "\nNothing was recorded.", "", f"{seconds:.0f} s.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page (default: experiments/results/gpu.md, build/gpu-toy.md)")
    parser.add_argument("--only", nargs="+", choices=[*BUDGETS], default=[*BUDGETS], help="some parts alone")
    parser.add_argument("--toy", action="store_true", help="toy size on the CPU, to try the script")
    args = parser.parse_args()
    out = args.out or ROOT / ("build/gpu-toy.md" if args.toy else "experiments/results/gpu.md")
    sys.path[1:1] = unpacked()
    from tests.gpu.parts import TITLES

    about = machine(args.toy)
    if about["device"] == "CPU" and not args.toy:
        print("no CUDA GPU is seen by torch: see nvidia-smi, or try the script with --toy", file=sys.stderr)
        return 2
    budgets = TOY_BUDGETS if args.toy else BUDGETS
    command = " ".join(["python -m tests.gpu", *sys.argv[1:]])
    parts: dict[str, tuple[list[Row], float]] = {}
    for name in args.only:
        parts[name] = run_part(name, budgets[name], args.toy)
        failed = [row["failed"] for row in parts[name][0] if "failed" in row]
        print(f"{name}: {parts[name][1]:.0f} s{''.join(f'; {one}' for one in failed)}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(about, command, parts, TITLES.__getitem__), encoding="utf-8")
    print(out)
    return int(any("failed" in row for rows, _ in parts.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
