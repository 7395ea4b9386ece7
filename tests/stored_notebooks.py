"""notebooks/*.ipynb from notebooks/*.py: executed, with their figures; `--links` alone moves line numbers.

python tests/stored_notebooks.py [--links] [NAME ...], where a NAME is the beginning of a file's name, such as 03
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
SECONDS = 300  # a cell
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
# [`name`](../path/file.py#L12): the line where the name begins
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\(\.\./(?P<path>[\w/.]+\.py)#L(?P<line>\d*)\)")


def line_of(path: str, name: str) -> int:
    """The line of a file where the function, class or constant `name` begins, "Class.method" included."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    start = 0
    for part in name.split("."):
        begins = re.compile(rf"\s*(?:def|class) {re.escape(part)}\b|{re.escape(part)}\b.*=")
        start = next((i for i in range(start, len(lines)) if begins.match(lines[i])), -1)
        if start < 0:
            raise ValueError(f"{path} defines no {name}, to which a notebook links")
    return start + 1


def with_lines(text: str) -> str:
    """The text with the line numbers that its links have now."""
    return LINK.sub(lambda m: f"[`{m['name']}`](../{m['path']}#L{line_of(m['path'], m['name'])})", text)


def read(source: Path) -> Any:
    """The notebook of a source, without outputs."""
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def executed(source: Path) -> Any:
    """The notebook of a source, run from top to bottom in a kernel of its own; raises for a cell that fails."""
    from nbclient import NotebookClient

    # One thread: numbers do not follow the machine's cores, and two notebooks run side by side.
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    notebook = read(source)
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place, record_timing=False).execute()
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.metadata = dict(KERNEL)
    return notebook


def stored(source: Path) -> Any:
    """The committed notebook."""
    import nbformat

    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def follow(path: Path) -> None:
    """Gives the links in a source, or in a notebook, the line numbers of today."""
    text = path.read_text(encoding="utf-8")
    if (new := with_lines(text)) != text:
        path.write_text(new, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


def main(names: list[str], *, links: bool) -> None:
    for source in SOURCES:
        if names and not any(source.name.startswith(name) for name in names):
            continue
        follow(source)
        if links:
            follow(source.with_suffix(".ipynb"))
            continue
        import nbformat

        nbformat.write(executed(source), source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").relative_to(ROOT))


if __name__ == "__main__":
    words = sys.argv[1:]
    main([word for word in words if word != "--links"], links="--links" in words)
