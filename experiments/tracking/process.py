"""The process that talks to W&B for one training, started by experiments/tracking/client.py.

It takes pickled messages on its standard input and answers in lines of JSON. Whatever W&B, its server or its own
service does, a training waits for none of it, and can end this process. It imports nothing of this project and no
torch.
"""

import io
import json
import logging
import os
import pickle
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

SLOW = 5.0  # seconds that logging pictures and tables may take; W&B asks the server for each of them
PROBE = 4.0  # seconds for a server to show that it is one
INIT = 8.0  # seconds for W&B to begin a run on the server
CREDENTIALS = ("api_key", "identity_token_file", "credentials_file")
SHOWN = ("mode", "entity", "project", "run_tags", "base_url")  # settings that hold no secret
ORPHANED = 12.0  # seconds to end in when the training was killed


Mode = Literal["online", "offline", "disabled"]


class Answers:
    """Lines of JSON to the training."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def say(self, kind: str, **content: Any) -> None:
        try:
            self.stream.write(json.dumps({"kind": kind} | content).encode() + b"\n")
            self.stream.flush()
        except OSError:  # nobody listens: the training has ended
            pass


def sound(given: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """The settings that W&B accepts; of each other one it is said why it is left out."""
    import wandb

    kept: dict[str, Any] = {}
    for name, value in given.items():
        try:
            wandb.Settings(**{name: value})
        except Exception as error:  # noqa: BLE001  # pydantic's, and W&B's own
            # Of keys, headers and proxies neither the value nor W&B's message, which repeats it, may be shown.
            what = " ".join(str(error).split("For further information")[0].split())
            shown, why = (f" {value!r}", what) if name in SHOWN else ("", f"W&B refuses it ({type(error).__name__})")
            answers.say("warning", text=f"{name.removeprefix('run_')}{shown} is not used: {why}")
            if name in ("base_url", "mode"):  # rather nowhere than to another server
                kept["mode"] = "offline"
        else:
            kept.setdefault(name, value)
    return kept


def refuse_server(base_url: str, proxies: Mapping[str, str]) -> str:
    """Why nothing can be logged online now; empty where something that can be W&B's server answers within `PROBE` s.

    Only what proves that it cannot be is an answer: a certificate that Python does not know, W&B's service may.
    """
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "seglab"}
    request = urllib.request.Request(f"{base_url.rstrip('/')}/graphql", question, headers)
    try:
        handler = urllib.request.ProxyHandler({**urllib.request.getproxies(), **proxies})
        urllib.request.install_opener(urllib.request.build_opener(handler))
        with urllib.request.urlopen(request, timeout=PROBE) as answer:
            content = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        return "" if error.code in (400, 401, 403) else f"the server answers {error.code}"
    except urllib.error.URLError as error:
        return "" if "CERTIFICATE" in str(error.reason) else f"the server cannot be reached ({error.reason})"
    except Exception as error:  # noqa: BLE001  # a time-out while reading, a connection that breaks, no HTTP at all
        return f"the server gives no answer ({type(error).__name__})"
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    of_wandb = isinstance(said, dict) and {"data", "errors"} & set(said)  # one that wants a key first answers errors
    return "" if of_wandb else "what answers is no server of W&B's (a login page in between?)"


def choose_mode(wanted: Mode | None, again: bool, settings: Any, answers: Answers) -> Mode:
    """`wanted`; else offline where a first attempt has failed, there is no key, or the server is none."""
    import wandb

    if again:
        return "offline"
    if wanted is not None:
        if wanted != "online":
            return wanted
    elif not wandb.login(prompt=False, verify=False):
        return "offline"  # nothing to be told: so it is for everybody who has no account
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    if reason := refuse_server(settings.base_url, {name: value for name, value in proxies.items() if value}):
        answers.say("warning", text=f"{reason}: logging offline")
        return "offline"
    return "online"


def begin(start: Mapping[str, Any], answers: Answers) -> Any:
    """The run of W&B."""
    import wandb

    # Its debug.log would begin with the folder it lies in.
    logging.getLogger("wandb").addFilter(lambda record: record.levelno >= logging.WARNING)

    given = sound(start["given"], answers)
    wanted = given.pop("mode", None)
    if start["again"] or wanted in ("offline", "disabled"):  # a key that is none would be refused here, too
        given = {name: value for name, value in given.items() if name not in CREDENTIALS}
    settings = dict(start["settings"])
    settings |= {"init_timeout": INIT, "stop_fn": lambda: answers.say("stop")}
    # W&B keeps each setting that is named here, whatever an environment or a file says.
    setup = wandb.setup(wandb.Settings(**given, **settings))
    mode = choose_mode(wanted, start["again"], setup.settings, answers)
    init = dict(start["init"])
    init["tags"] = [*init["tags"], *(given.get("run_tags") or ())]
    init["project"] = given.get("project") or init["project"]
    run = wandb.init(**init, mode=mode, settings=wandb.Settings(**settings))
    if getattr(run, "define_metric", None):
        run.define_metric(start["step"])
        run.define_metric("*", step_metric=start["step"], step_sync=True)
    answers.say("started", mode=mode)
    return run


def logged(value: Any) -> Any:
    """What W&B is given for a value of a message: a number, or the description of a picture, a table or a histogram."""
    import wandb

    if isinstance(value, list):
        return [logged(item) for item in value]
    if not isinstance(value, dict):
        return value
    content = {name: inner for name, inner in value.items() if name != "is"}
    if value["is"] == "histogram":
        return wandb.Histogram(np_histogram=(content["counts"], content["edges"]))
    if value["is"] == "table":
        return wandb.Table(columns=content["columns"], data=content["rows"])
    if value["is"] == "confusion":
        return confusion_image(**content)
    names = content["names"]
    masks = {name: {"mask_data": mask, "class_labels": names} for name, mask in content["masks"].items()}
    return wandb.Image(content["image"], masks=masks, caption=content["caption"])


def confusion_image(confusion: np.ndarray, names: list[str]) -> Any:
    """A confusion matrix (C, C) as a picture, each row divided by the pixels of the true class."""
    import matplotlib as mpl
    import wandb
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    few = len(names) <= 30  # more are not to be read anyway, and 150 took 20 s to draw
    side = 2 + (0.45 if few else 0.1) * len(names)
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever somebody's matplotlibrc says
        mpl.rcParams["text.parse_math"] = False  # names of classes are no formulas
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot(xlabel="prediction", ylabel="truth")
        axes.imshow(share, vmin=0, vmax=1, cmap=mpl.colormaps["Blues"])
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=10 if few else 5)
        axes.set_yticks(range(len(names)), names, fontsize=10 if few else 5)
        for (row, column), value in np.ndenumerate(share) if few else ():
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color="w" if value > 0.5 else "k")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    return wandb.Image(Image.open(drawn), caption="share of each true class, in percent")


class Run:
    """A run of W&B and what it has been given."""

    def __init__(self, start: Mapping[str, Any], answers: Answers) -> None:
        self.answers = answers
        self.step = start["step"]
        self.run = begin(start, answers)
        # The steps that a resumed run does again and that the server has are left out. The last of them is logged
        # again: whether all of its rows arrived is not known.
        self.known = int(self.run.summary.get(self.step, -1)) if self.run.resumed else -1
        self.media = True
        self.told: set[str] = set()

    def take(self, kind: str, content: Any) -> None:
        if kind in ("row", "panels") and content.get(self.step, self.known) < self.known:
            return
        try:
            getattr(self, kind)(content)
        except Exception as error:  # noqa: BLE001  # whatever W&B raises
            text = f"{type(error).__name__}: {error}"
            if kind + type(error).__name__ not in self.told:
                self.answers.say("warning", text=text)
            self.told.add(kind + type(error).__name__)

    def row(self, row: dict[str, Any]) -> None:
        self.run.log(row)

    def panels(self, row: dict[str, Any]) -> None:
        """Pictures and tables of one step."""
        if not self.media:
            return
        began = time.monotonic()
        built = {name: logged(value) for name, value in row.items()}
        drawn = time.monotonic()
        self.run.log(built)
        if time.monotonic() - drawn > SLOW:
            self.media = False
            self.answers.say(
                "warning",
                text=f"the server took {time.monotonic() - began:.0f} s for pictures and tables: the rest of this run "
                "is logged without them",
            )

    def artifact(self, content: dict[str, Any]) -> None:
        """A checkpoint. It is copied, so that what is uploaded is what it was, and its path says nothing of the
        machine."""
        import wandb

        artifact = wandb.Artifact(content["name"], type="model", metadata=content["metadata"])
        artifact.add_file(content["path"], name="last.ckpt")
        self.run.log_artifact(artifact, aliases=["latest", "last"])

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code)
        self.answers.say("finished", cut=bool(getattr(self.run, "_finish_timed_out", False)))


def leave(status: int) -> None:
    """Without the hooks that W&B runs at an exit: they wait."""
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    answers = Answers(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what W&B prints is no answer
    messages = sys.stdin.buffer
    try:
        start = pickle.load(messages)
        answers.say("hello")
        run = Run(start, answers)
    except BaseException as error:  # noqa: BLE001  # whatever W&B raises, SystemExit too
        answers.say("failed", text=f"{type(error).__name__}: {error}")
        leave(1)
    while True:
        try:
            kind, content = pickle.load(messages)
        except (EOFError, pickle.UnpicklingError):  # the training was killed
            kind, content = "finish", 1
            watch = threading.Timer(ORPHANED, leave, (1,))
            watch.daemon = True
            watch.start()
        run.take(kind, content)
        if kind == "finish":
            leave(0)


if __name__ == "__main__":
    main()
