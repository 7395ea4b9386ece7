"""experiments/shell/helps.json, the help of common calls that is printed without an import of torch: `make helps`."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.shell import helps
from experiments.shell.catalogue import ARCHITECTURES, DATAMODULES


def calls() -> Iterator[list[str]]:
    """The verb and the words of each call, without its --help."""
    folder = helps.ROOT / "experiments"
    yield from ([path.stem] for path in sorted(folder.glob("*.py")) if "Parser(" in path.read_text(encoding="utf-8"))
    yield from (["train", "--model", name] for name in ARCHITECTURES)
    yield from (["train", "--data", name] for name in DATAMODULES)
    yield from (["explain", name] for name in ARCHITECTURES)
    for path in sorted(folder.glob("ablate_*.py")):
        yield from ([path.stem], *([path.stem, "--data", name] for name in DATAMODULES))


def help_of(verb: str, *words: str) -> tuple[list[helps.Part], str]:
    """The parts of what a call prints that asks for help, and all of it."""
    module: Any = import_module(f"experiments.{verb}")
    main: Callable[[], Any] = getattr(module, "main", None) or (lambda: module.STUDY.command_line(module.__doc__))
    kept, out = list[list[helps.Part]](), io.StringIO()
    before, helps._keep = (helps._keep, sys.argv), kept.append
    sys.argv = [str(module.__file__), *words, "--help"]
    try:
        with redirect_stdout(out):
            main()
    except SystemExit as stop:
        assert not stop.code, (verb, words)
    finally:
        helps._keep, sys.argv = before
    (parts,) = kept  # none where they would not be printed as `out`
    return parts, out.getvalue()


def made() -> str:
    """The content of helps.json, a part a line."""
    packed = helps.packed({" ".join(call): help_of(*call)[0] for call in calls()})
    tables = []
    for name, table in packed.items():
        rows = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())
        tables.append(f" {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(tables) + "\n}\n"


if __name__ == "__main__":
    helps.STORED.write_text(made(), encoding="utf-8", newline="\n")
