"""What a training knows of W&B: a process beside it, to which it hands what is to be logged, and for which it never
waits.

W&B's own library runs in that process alone (experiments/tracking/process.py), with what is listed here of W&B's
variables and settings files. A server that refuses, hangs or goes away, and W&B's service, can so neither stop, slow
nor hang a training: it waits at the end alone, `FINISH` seconds at most.
"""

import configparser
import contextlib
import json
import logging
import math
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.loggers import CUT, STAGED

IMPORT = 90.0  # seconds for the process to import W&B: a machine may be busy
START = 15.0  # and then to begin a run on the server
START_OFFLINE = 60.0  # or on the disk, for which nobody is asked
FINISH = 15.0  # to take the rest at the end; WANDB_FINISH_TIMEOUT allows more
WAITING = 256 << 20  # bytes of messages that may wait for the process
log = logging.getLogger("lightning.pytorch")

# Of W&B's variables (WANDB_...), and of the entries of its settings files, those that say where to log and as whom. All
# others would name, join, tag, move, stop or silence a run, for every cell alike, or are W&B's own from process to
# process.
GIVEN = {
    "API_KEY": "api_key",
    "APP_URL": "app_url_override",
    "BASE_URL": "base_url",
    "CREDENTIALS_FILE": "credentials_file",
    "ENTITY": "entity",
    "HTTP_PROXY": "http_proxy",
    "HTTPS_PROXY": "https_proxy",
    "IDENTITY_TOKEN_FILE": "identity_token_file",
    "INSECURE_DISABLE_SSL": "insecure_disable_ssl",
    "MODE": "mode",
    "NOTES": "run_notes",
    "PROJECT": "project",
    "TAGS": "run_tags",
    "X_EXTRA_HTTP_HEADERS": "x_extra_http_headers",
}
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
# Variables of others that W&B would act on: it asks Kubernetes for the container, and takes names from SageMaker.
FOREIGN = ("WANDB_", "_WANDB_", "KUBERNETES_", "SM_", "TRAINING_JOB_")


def given_settings(environ: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What the variables and the settings files of W&B say of where to log and as whom, by W&B's name of the setting.

    `folder` is the one whose wandb/settings is read, as W&B does. A file that cannot be read is said and left out.
    """
    config = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    with contextlib.suppress(RuntimeError):  # nobody's home folder is known
        config = config.expanduser()
    settings: dict[str, Any] = {}
    for path in (config / "settings", folder / ".wandb" / "settings", folder / "wandb" / "settings"):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            continue
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, configparser.Error) as error:
            log.warning("W&B: %s is not used: %s", path, " ".join(str(error).split()))
            continue
        if parser.has_section("default"):
            settings |= {key: value for key, value in parser["default"].items() if key.upper() in GIVEN}
    settings |= {key: value for name, value in environ.items() if (key := name.removeprefix("WANDB_").lower()) != name}
    settings = {GIVEN[key.upper()]: value for key, value in settings.items() if key.upper() in GIVEN and value}
    if "run_tags" in settings:
        settings["run_tags"] = [tag.strip() for tag in settings["run_tags"].split(",") if tag.strip()]
    if "x_extra_http_headers" in settings:
        with contextlib.suppress(ValueError, RecursionError):  # W&B says what it expects
            settings["x_extra_http_headers"] = json.loads(settings["x_extra_http_headers"])
    if environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        settings["mode"] = "disabled"
    if "mode" in settings and settings["mode"] not in MODES:
        log.warning("W&B: WANDB_MODE must be one of %s, got %r: logging offline", ", ".join(MODES), settings["mode"])
    if "mode" in settings:
        settings["mode"] = MODES.get(settings["mode"], "offline")
    return settings


def own_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command of W&B, with those of its variables that say where to log and as whom."""
    kept = {f"WANDB_{name}" for name in GIVEN} | {"WANDB_CONFIG_DIR"}
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(FOREIGN)}


def agent_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Which run of which sweep this is, where an agent of W&B has started this command; else nothing."""
    names = {"WANDB_SWEEP_ID": "sweep_id", "WANDB_RUN_ID": "run_id", "WANDB_SWEEP_PARAM_PATH": "sweep_param_path"}
    settings = {setting: environ[name] for name, setting in names.items() if environ.get(name)}
    return settings if {"sweep_id", "run_id"} <= set(settings) else {}


def _finish_seconds() -> float:
    try:
        seconds = float(os.environ.get("WANDB_FINISH_TIMEOUT") or FINISH)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        log.warning("W&B: WANDB_FINISH_TIMEOUT must be a number of seconds, got %r", os.environ["WANDB_FINISH_TIMEOUT"])
        return FINISH
    return seconds or FINISH  # 0 is W&B's word for ever


def _warn(text: str) -> None:
    log.warning("W&B: %s (training goes on; metrics.csv has the numbers)", " ".join(text.split()))


class Client:
    """Hands messages to the process that talks to W&B: none of its methods but `finish` waits, and none raises.

    `start` is what the process begins a run with, see `process.begin`; `out` is the folder of the run.
    """

    def __init__(self, start: Mapping[str, Any], out: Path) -> None:
        self.finish_seconds = _finish_seconds()
        # W&B gives up a little earlier by itself, and ends its record.
        limits = {"settings": dict(start["settings"]) | {"finish_timeout": max(1.0, self.finish_seconds - 3)}}
        self.start_message, self.out = dict(start) | limits, out
        self.messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.sent = self.taken = self.dropped = 0  # bytes, bytes, messages; each is counted by one thread
        self.mode = ""  # online, offline or disabled, once it is known
        self.over = self.whole = False
        self.deadline = math.inf  # when `finish` stops to wait
        self.process: subprocess.Popen[bytes] | None = None
        self.scratch: Path | None = None
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins the run of W&B, beside everything that follows."""
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    def send(self, kind: str, content: Any) -> None:
        """Hands over a message; it is dropped where `WAITING` bytes wait already."""
        if self.thread is None or self.over:
            return
        message = pickle.dumps((kind, content))
        if self.sent - self.taken + len(message) > WAITING:
            self.dropped += 1
            return
        self.sent += len(message)
        self.messages.put(message)

    def finish(self, exit_code: int) -> None:
        """Waits until W&B has everything, `FINISH` seconds at most; what did not arrive, experiments.sync uploads."""
        if self.thread is None:
            return
        self.deadline = time.monotonic() + self.finish_seconds
        self.messages.put(pickle.dumps(("finish", exit_code)))
        try:
            self.thread.join(max(0.0, self.deadline - time.monotonic()))
        finally:  # a second signal does not wait
            late = self.thread.is_alive()
            self.over = True
            self._kill()
            if (late or not self.whole) and self.mode:
                self._mark()
                _warn(
                    f"the server did not take all within {self.finish_seconds:.0f} s; what W&B had is in "
                    f"{self.out}/wandb"
                )
            elif late:
                _warn("it did not start, so nothing is logged there")
            if self.dropped:
                _warn(f"it was too slow for {self.dropped} pictures, tables or rows, which it did not get")
            if self.scratch is not None:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def _serve(self) -> None:
        try:
            if not self._begin():
                self.over = True
                return
            assert self.process is not None and self.process.stdin is not None
            while not self.over:
                message = self.messages.get()
                self.process.stdin.write(message)
                self.process.stdin.flush()
                self.taken += len(message)
                if pickle.loads(message)[0] == "finish":
                    self._hear("finished", self.deadline)
                    return
        except (OSError, ValueError) as error:  # the process has ended, or has been ended
            if not self.over and math.isinf(self.deadline):
                _warn(f"its process has ended ({error})")
        finally:
            self.over = self.over or math.isinf(self.deadline)

    def _begin(self) -> bool:
        """Starts the process; again, offline, where it cannot begin a run online."""
        for again in (False, True):
            if self.over or time.monotonic() >= self.deadline:
                return False
            before = set(self.out.glob("wandb/*run-*-*"))
            try:
                self._spawn(again)
            except OSError as error:
                _warn(f"its process cannot be started ({error})")
                return False
            if self._hear("hello", time.monotonic() + IMPORT) and self._hear(
                "started", time.monotonic() + (START_OFFLINE if again else START)
            ):
                return True
            if self.over:
                return False
            self._kill()
            for folder in set(self.out.glob("wandb/*run-*-*")) - before:  # an attempt of which nothing is on the server
                shutil.rmtree(folder, ignore_errors=True)
            if not again:
                log.warning("W&B: logging offline")
        return False

    def _spawn(self, again: bool) -> None:
        # W&B would stage the files of tables in the home folder, and write their whole paths into the record. Here they
        # go into the run's folder, where experiments.sync finds them, by a path that says nothing of where it lies.
        staged = (self.out / STAGED).absolute()
        staged.mkdir(parents=True, exist_ok=True)
        if self.scratch is None:
            self.scratch = Path(tempfile.mkdtemp(prefix="seglab-"))
            (self.scratch / "data").symlink_to(staged, target_is_directory=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environ |= {"WANDB_DATA_DIR": str(self.scratch / "data"), "WANDB_CACHE_DIR": str(self.scratch / "cache")}
        # Neither is known in a container that runs as a user of no name, and W&B asks for both.
        environ |= {"USER": "unnamed", "LOGNAME": "unnamed", "HOME": environ.get("HOME") or str(self.scratch)}
        self.process = subprocess.Popen(
            # -P: the folder of the file holds modules with names of the standard library's
            [sys.executable, "-P", str(Path(__file__).with_name("process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.scratch,  # without a settings file of W&B, and without code
            env=environ,
            start_new_session=True,  # Ctrl-C is for the training, which ends this process when it has ended
        )
        if self.over:  # `finish` has not seen it
            self._kill()
            raise OSError("the training has ended")
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(self.start_message | {"again": again}))
        self.process.stdin.flush()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Passes on what the process answers, and says its warnings."""
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout:
                answer = json.loads(line)
                if answer["kind"] == "warning":
                    _warn(answer["text"])
                elif answer["kind"] == "stop":
                    log.warning(
                        "W&B: somebody has pressed Stop there, which stops no training: press Ctrl-C here instead"
                    )
                else:
                    self.answers.put(answer | {"of": process.pid})
        self.answers.put({"kind": "ended", "of": process.pid})

    def _hear(self, kind: str, until: float) -> bool:
        """Whether the process has given this answer in time; what it says is kept."""
        assert self.process is not None
        while not self.over and (left := min(until, self.deadline) - time.monotonic()) > 0:
            try:
                answer = self.answers.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            if answer["of"] != self.process.pid:
                continue
            if answer["kind"] == "failed":
                _warn(answer["text"])
                return False
            if answer["kind"] == "ended":
                return False
            if answer["kind"] == "started":
                self.mode = answer["mode"]
            if answer["kind"] == "finished":
                self.whole = not answer["cut"]
            if answer["kind"] == kind:
                return True
        return False

    def _kill(self) -> None:
        """Ends the process; W&B's service, which is its child in a session of its own, ends with it."""
        if self.process is None or self.process.returncode is not None:  # its number may be somebody else's by now
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.wait(5)

    def _mark(self) -> None:
        """Says beside the record of this attempt that it did not arrive whole."""
        for path in sorted(self.out.glob("wandb/*run-*-*/*.wandb"))[-1:]:
            with contextlib.suppress(OSError):
                path.with_name(path.name + CUT).touch()
