"""What an ablation declares: variants of one run, the factors they differ in, and the arms that match another's
size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from experiments.evidence.schema import folder_name
from experiments.runs.run import Run
from experiments.shell.found import Found, wanted

if TYPE_CHECKING:
    from experiments.grids.cells import PlannedCell

# What a grid and its report write beside the folders of the variants.
RESERVED = {"tuning", "figures", "plan.json", "report.html", "reproduce.sh", "environment.json"} | {
    f"table.{kind}" for kind in ("md", "csv", "tex")
}
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


@dataclass(frozen=True)
class Measured:
    """What is measured over the finished cells: fields of plan.json by variant, and notes, a sentence or more each."""

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Variants of one run that differ in the declared factors and in nothing else, but for what makes an arm match
    another.

    A factor is a hyperparameter of the module, or an argument of the data or the trainer: "upsample", "data.crop",
    "trainer.max_epochs". `matched`: the arms that must be as large as another one.

    Variants and stages may begin with the weights of others, their `parents`, of the same seed. A run with a step, see
    `Run`, works on those of one or more; its settings are those of its first parent. A setting may be what a step
    finds: see `experiments.shell.found`.

    Raises ValueError for names that are unknown, for a circle, and for a parent that leaves no weights.
    """

    name: str
    question: str
    runs: Mapping[str, Run]
    factors: Mapping[str, Sequence[Any]]  # with their levels
    baseline: str
    matched: Mapping[str, Match] = field(default_factory=dict)
    stages: Mapping[str, Run] = field(default_factory=dict)  # run once a seed for the variants, and not compared
    parents: Mapping[str, str | Sequence[str]] = field(default_factory=dict)  # by variant or stage
    # What the report calls the factors of each variant, where these are no settings: {variant: {factor: level}}.
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    finish: "Callable[[Sequence[PlannedCell], Callable[[str], None]], Measured] | None" = None  # of cells that are done
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
        for name in self.every:
            try:
                folder_name(name)
            except ValueError as error:
                raise ValueError(f"a variant's name {error}, got {name!r}: give it another one") from None
            if name.partition("/")[0] in RESERVED:
                raise ValueError(f"a variant cannot be called {name!r}, as a file of the experiment is")
        if self.levels and self.levels.keys() != self.runs.keys():
            raise ValueError(f"levels must be of the variants ({', '.join(self.runs)}), got {', '.join(self.levels)}")
        _check_graph(self)
        object.__setattr__(self, "runs", {name: self._with_settings(name) for name in self.runs})
        object.__setattr__(self, "stages", {name: self._with_settings(name) for name in self.stages})

    @property
    def every(self) -> dict[str, Run]:
        """Stages and variants."""
        return {**self.stages, **self.runs}

    def parents_of(self, name: str) -> tuple[str, ...]:
        """Whose weights a variant or a stage begins with, or works on."""
        parents = self.parents.get(name, ())
        return (parents,) if isinstance(parents, str) else tuple(parents)

    def needs(self, name: str) -> tuple[str, ...]:
        """What must be done before a variant or a stage: its parents, and the steps that find its settings."""
        return tuple(dict.fromkeys([*self.parents_of(name), *(of.of for of in self._founds(name))]))

    @cached_property
    def order(self) -> list[str]:
        """Stages and variants, each behind what it needs."""
        order: list[str] = []

        def visit(name: str, way: tuple[str, ...]) -> None:
            if name in way:
                raise ValueError(
                    f"{self.name}: nothing can be the first of {' -> '.join([*way[way.index(name) :], name])}"
                )
            for need in self.needs(name):
                visit(need, (*way, name))
            if name not in order:
                order.append(name)

        for name in self.every:
            visit(name, ())
        return order

    def _founds(self, name: str) -> list[Found]:
        return [of for value in self.every[name].hparams.values() if (of := wanted(value))]

    def _with_settings(self, name: str) -> Run:
        """A step is that of its first parent's settings, whatever it was declared with."""
        run = self.every[name]
        is_linked = not run.step or run.parents
        return run if is_linked else replace(self.every[self.parents_of(name)[0]], step=run.step)


def _check_graph(ablation: Ablation) -> None:
    every = ablation.every
    if ablation.tune and ablation.parents:
        raise ValueError(
            f"{ablation.name}: variants that begin with others are not tuned, as each trial would need a parent of its "
            "own: leave out --tune, and set what they share by --base"
        )
    if both := ablation.stages.keys() & ablation.runs.keys():
        raise ValueError(f"{ablation.name}: {', '.join(both)} is a variant and a stage: give it another name")
    needed = {need for name in every for need in ablation.needs(name)}
    for name in {*ablation.parents, *needed} - every.keys():
        raise ValueError(f"{ablation.name}: {name!r} is neither a variant nor a stage ({', '.join(every)})")
    for name, run in every.items():
        parents = ablation.parents_of(name)
        if run.step and not parents:
            raise ValueError(f"{ablation.name}: the step {name!r} has no parent, whose weights it would work on")
        if not run.step and len(parents) > 1:
            raise ValueError(f"{ablation.name}: {name!r} is trained, and so begins with one parent, got {parents}")
        for parent in parents:
            if every[parent].step:
                raise ValueError(f"{ablation.name}: {name!r} cannot begin with {parent!r}: a step leaves no weights")
        for of in ablation._founds(name):
            if not every[of.of].step:
                raise ValueError(
                    f"{ablation.name}: {name!r} waits for {of}, which is trained: only a step finds something"
                )
    if idle := ablation.stages.keys() - needed:
        raise ValueError(
            f"{ablation.name}: nothing needs the stage {', '.join(idle)}: name it in parents, or leave it out"
        )
    _ = ablation.order


def crossed(**factors: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Every combination of the levels, named by them: {"nearest+none": {"upsample": "nearest", "skips": "none"}, ...}.

    Levels that are no words are named with their factor: "width 4, dropout 0.0", "nearest, width 4". A factor such as
    "data.crop" is handed over as `**{"data.crop": (96, 128)}`.
    """
    words = {name: all(isinstance(level, str) for level in levels) for name, levels in factors.items()}
    between = "+" if all(words.values()) else ", "
    made = {
        between.join(
            str(level) if words[name] else f"{name.rpartition('.')[2]} {level}"
            for name, level in zip(factors, levels, strict=True)
        ): dict(zip(factors, levels, strict=True))
        for levels in product(*factors.values())
    }
    if len(made) < math.prod(map(len, factors.values())):
        raise ValueError(f"crossed needs levels that read differently, got {factors}")
    return made


def variants(base: Run, hparams: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
    """The run with each of these sets of settings, see `Run.but`, instead of its own."""
    return {name: base.but(**changed) for name, changed in hparams.items()}
