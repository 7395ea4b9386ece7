import multiprocessing
import os
import warnings
from pathlib import Path

import pytest

from lightning_modules.refinement import native

needs_compiler = pytest.mark.skipif(native._compiler() is None, reason="needs a C++ compiler (c++, g++, clang++)")
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A source beside a copy of native.py's path, an empty cache, and no memory of earlier outcomes."""
    (tmp_path / "probe.cpp").write_text(SOURCE)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.delenv("SEGLAB_NO_COMPILER", raising=False)
    _forget()
    yield tmp_path
    _forget()


def _forget():
    native._outcome.cache_clear()
    native._warn.cache_clear()


def _libraries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("probe-*.so"))


@needs_compiler
def test_a_library_is_compiled_once_and_then_taken_from_the_cache(kernel):
    assert native.library("probe").answer() == 42
    (path,) = _libraries(kernel / "cache")
    written = path.stat().st_mtime_ns
    _forget()
    assert native.library("probe").answer() == 42
    assert _libraries(kernel) == [path] and path.stat().st_mtime_ns == written
    assert native.reason("probe") is None


@needs_compiler
def test_another_source_or_flag_is_another_library(kernel):
    native.library("probe")
    native.library("probe", ("-DOTHER",))
    (kernel / "probe.cpp").write_text(SOURCE.replace("42", "43"))
    _forget()
    assert native.library("probe").answer() == 43
    assert len(_libraries(kernel)) == 3


@needs_compiler
@pytest.mark.parametrize("damage", ["half", "empty", "other"])
def test_a_damaged_library_is_compiled_again(kernel, damage):
    # Compiled, not loaded: a library that this process has mapped must not be cut under its feet
    compiler = native._compiler()
    native.library("probe", ("-DANOTHER",))  # makes the folder
    identity = _name_of("probe")
    path = kernel / "cache" / "seglab" / identity
    assert native._compile(compiler, (), "probe", path) == ""
    content = path.read_bytes()
    changed = {"half": content[: len(content) // 2], "empty": b"", "other": content[:100] + b"x" + content[101:]}
    path.write_bytes(changed[damage])
    assert native.library("probe").answer() == 42
    assert path.read_bytes() == content or native._intact(path)


def _name_of(name: str) -> str:
    """The file `library(name)` looks for, found out by letting a child process compile it."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=native.library, args=(name,))
    child.start()
    child.join()
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "seglab"
    return max(folder.glob("probe-*.so"), key=lambda path: path.stat().st_mtime_ns).name


@needs_compiler
def test_processes_may_race(kernel):
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(_answer, range(4), chunksize=1) == [42] * 4
    assert len(_libraries(kernel)) == 1
    assert not list(kernel.rglob("*.tmp"))


def _answer(_):
    return native.library("probe").answer()


@needs_compiler
def test_a_cache_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(kernel, monkeypatch):
    (kernel / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel / "file"))
    assert native.library("probe").answer() == 42
    (path,) = _libraries(kernel / "temporary")
    assert path.parent.stat().st_mode & 0o077 == 0


@needs_compiler
def test_nothing_is_loaded_from_a_folder_that_others_can_write(kernel):
    folder = kernel / "cache" / "seglab"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert native.library("probe").answer() == 42
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("SEGLAB_NO_COMPILER", "1", "unset it"), ("CXX", "/nonexistent/c++", "install g\\+\\+")],
)
def test_without_a_compiler_there_is_none_and_one_warning_with_the_way_out(kernel, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=words) as caught:
        found = [native.library("probe") for _ in range(2)]
    assert found == [None, None] and len(caught) == 1
    assert name in native.reason("probe")


@needs_compiler
def test_a_source_that_does_not_compile_says_so_once(kernel):
    (kernel / "probe.cpp").write_text("int main( {")
    with pytest.warns(UserWarning, match="error") as caught:
        assert native.library("probe") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library("probe") is None
    assert len(caught) == 1 and not list(kernel.rglob("*.tmp"))
