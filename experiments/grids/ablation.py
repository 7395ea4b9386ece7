"""What an ablation declares: variants of one run, the factors they differ in, and the arms that match another's
size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from experiments.evidence.schema import folder_name
from experiments.runs.run import Run

TOLERANCE = 0.05  # between an arm and the one that it is matched with


@dataclass(frozen=True, kw_only=True)
class Match:
    """An arm that has as many parameters, or costs as much, as another, so that the score is not one of its size.

    `by`: the hyperparameter that is chosen for it, so no factor; None where the network itself sees to it.
    """

    of: str  # a key of `SIZES`
    like: str  # a variant
    by: str | None = None
    tolerance: float = TOLERANCE  # relative


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Variants of one run that differ in the declared factors and in nothing else, but for what makes an arm match
    another.

    A factor is a hyperparameter of the module, or an argument of the data or the trainer: "upsample", "data.crop",
    "trainer.max_epochs". `matched`: the arms that must be as large as another one.
    """

    name: str
    question: str
    runs: Mapping[str, Run]
    factors: Mapping[str, Sequence[Any]]  # with their levels
    baseline: str
    matched: Mapping[str, Match] = field(default_factory=dict)
    data: str = ""  # name of the data, for the report
    data_note: str = ""  # what these data can and cannot show
    scale_note: str = ""  # what was made smaller than a full-size run, and what was set by flags
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # hyperparameters with the values to try
    tuning: Mapping[str, Any] = field(default_factory=dict)  # what the trials have found: see `tuning.tuned`

    def __post_init__(self) -> None:
        if self.baseline not in self.runs:
            raise ValueError(f"baseline must be one of {', '.join(self.runs)}, got {self.baseline!r}")
        for name in {*self.matched, *(how.like for how in self.matched.values())} - {*self.runs}:
            raise ValueError(f"matched must name variants ({', '.join(self.runs)}), got {name!r}")
        for name in self.runs:
            try:
                folder_name(name)
            except ValueError as error:
                raise ValueError(f"a variant's name {error}, got {name!r}: give it another one") from None


def crossed(**factors: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Every combination of the levels, named by them: {"nearest+none": {"upsample": "nearest", "skips": "none"}, ...}.

    Levels that are no words are named with their factor: "width 4, dropout 0.0", "nearest, width 4". A factor such as
    "data.crop" is handed over as `**{"data.crop": (96, 128)}`.
    """
    words = {name: all(isinstance(level, str) for level in levels) for name, levels in factors.items()}
    between = "+" if all(words.values()) else ", "
    return {
        between.join(
            str(level) if words[name] else f"{name.rpartition('.')[2]} {level}"
            for name, level in zip(factors, levels, strict=True)
        ): dict(zip(factors, levels, strict=True))
        for levels in product(*factors.values())
    }


def variants(base: Run, hparams: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
    """The run with each of these sets of settings, see `Run.but`, instead of its own."""
    return {name: base.but(**changed) for name, changed in hparams.items()}
