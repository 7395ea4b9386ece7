"""How a command prints what it warns of."""

import warnings

import pytest

from experiments.shell.command import command


def test_a_warning_of_data_is_one_line_without_a_place_in_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which is put back
    before = warnings.formatwarning("slow", UserWarning, "a.py", 3)
    for _ in range(2):
        with command():
            said = warnings.formatwarning(UserWarning("W_UNUSED: images in no split: a"), UserWarning, "a.py", 3)
            assert said == "W_UNUSED: images in no split: a\n"
            assert warnings.formatwarning("slow", UserWarning, "a.py", 3) == before
