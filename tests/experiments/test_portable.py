"""Other systems, as far as one can tell from here: every module is imported without what Windows lacks, and without a
deprecation."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# First as it is, which also loads other people's packages; then again as on Windows, of which they know nothing.
SCRIPT = r"""
import importlib, os, pkgutil, signal, sys, types, warnings

PACKAGES = ("datamodules", "lightning_modules", "experiments")
warnings.filterwarnings("error", category=DeprecationWarning, module="|".join(PACKAGES))
names = [found.name for name in PACKAGES for found in pkgutil.walk_packages([name], f"{name}.")]
names = [*PACKAGES, *names]
lacking = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] not in PACKAGES, error
        lacking.append(name)  # of an extra
for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
    del sys.modules[name]

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, missing in (
    (signal, ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "SIGXFSZ", "pause")),
    (os, ("fork", "register_at_fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "mkfifo", "waitid", "uname")),
):
    for name in missing:
        delattr(module, name)
locks = []
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda *words: locks.append(words)
sys.modules["msvcrt"] = msvcrt
sys.platform = "win32"
for name in names:
    if name not in lacking:
        importlib.import_module(name)

from pathlib import Path
from experiments.grids.cell import end_with_parent
from experiments.shell.ending import SIGNALS
from experiments.shell.files import _is_alive, locked

end_with_parent(1)
assert [one.name for one in SIGNALS] == ["SIGINT", "SIGTERM"]
assert _is_alive(os.getpid())
with locked(Path(sys.argv[1]) / "run") as nothing:
    (Path(sys.argv[1]) / "run" / ".lock").read_text()
(lock,) = locks
assert lock[1:] == (2, 1)
print(len(names), "modules,", len(lacking), "of extras")
"""


def test_every_module_is_imported_where_windows_lacks_what_linux_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-5]) > 100, done.stdout
