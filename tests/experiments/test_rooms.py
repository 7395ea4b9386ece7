"""The rooms of `experiments` and who may import whom: nothing upwards, nothing in a circle, nothing a verb."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import write_experiment

import experiments

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "experiments"
# Each room, and the rooms that its files may import from, beside its own.
BELOW = {
    "shell": set(),
    "evidence": {"shell"},
    "reports": {"evidence", "shell"},
    "runs": {"shell"},
    "tracking": {"runs", "shell"},
    "prediction": {"evidence", "runs", "shell"},
    "grids": {"reports", "evidence", "runs", "tracking", "shell"},
    "machines": {"grids", "runs", "tracking", "shell"},
    "exporting": {"reports", "evidence", "runs", "shell"},
    "crfs": {"grids", "reports", "evidence", "runs", "tracking", "shell"},
}
ON_TOP = {*BELOW}  # a question or a verb may import from every room, and neither a question nor a verb


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, by_name: bool = True) -> set[str]:
    """The modules of this package that a file imports anywhere in it: within functions, for types, and `by_name`."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif (
            by_name and isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))
        ):
            imported |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name for name in imported if name.split(".")[0] == "experiments"}


def room_of(module: str) -> str:
    """The room of a module; empty for a question, a verb and the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else ""


def test_on_top_stand_questions_verbs_and_results_alone() -> None:
    for path in PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "__init__.py" or '__name__ == "__main__"' in text, f"nobody can type {path.name}"
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*BELOW, "results"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_never_to_a_verb(module: str) -> None:
    if module == "experiments":  # what it offers is imported when it is asked for
        return
    room = room_of(module)
    allowed = BELOW[room] | {room} if room else ON_TOP
    wrong = {name for name in imports(MODULES[module]) if room_of(name) not in allowed}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, which does not stand below it"


@pytest.mark.parametrize(
    "line",
    [
        "from experiments.runs.run import Run",
        "def f():\n    import experiments.train",
        "from experiments import grids",
        "import_module('experiments.runs.run')",
        "importlib.import_module('experiments.train')",
    ],
)
def test_an_import_upwards_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "power.py").write_text(line)
    assert {room_of(name) for name in imports(tmp_path / "power.py")} - {"evidence", "shell"}


def test_no_circle() -> None:
    # But for a table whose entries are made by a file of the same room that is slow to import.
    graph = {
        module: imports(path, by_name=False) - {module} for module, path in MODULES.items() if module != "experiments"
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join([*way[way.index(module) :], module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_other_packages_import_nothing_from_here() -> None:
    for package in ("lightning_modules", "datamodules"):
        other = {"lightning_modules": "datamodules", "datamodules": "lightning_modules"}[package]
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not {name.split(".")[0] for name in names} & {"experiments", other}, path


@pytest.mark.parametrize("name", experiments.__all__)
def test_what_the_package_offers(name: str) -> None:
    assert getattr(experiments, name).__name__ == name
    assert getattr(experiments, name).__module__ == experiments.PLACES[name]


def test_it_offers_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = experiments.Trainer


LIGHTNING = ("lightning", "pytorch_lightning", "torchmetrics")


def loaded(*modules: str) -> str:
    """Code that prints which of these are imported."""
    return f"import sys; print(*(m for m in {modules} if m in sys.modules))"


def test_importing_evidence_and_reports_imports_no_lightning_and_no_plotly() -> None:
    rooms = [module for module in MODULES if room_of(module) in ("evidence", "reports")]
    code = "\n".join(f"import {module}" for module in ["experiments", "experiments.report", *rooms])
    command = [sys.executable, "-c", f"{code}\n{loaded(*LIGHTNING, 'plotly')}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_writing_a_report_imports_no_lightning(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    code = f"""
from pathlib import Path
from experiments.reports import figures
from experiments.reports.write import write_report
figures.FIGURES.clear()  # they take ten seconds
write_report(Path({str(tmp_path)!r}))
{loaded(*LIGHTNING)}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "" and (tmp_path / "report.html").exists()
