"""What a report says of how alike its variants were trained: by plan.json, and where the finished cells deviate from
it.

Reads only, so that a report needs neither the networks nor their trainer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.evidence.cell import Cell
from experiments.evidence.family import MIN_SEEDS
from experiments.shell.found import wanted

# What can be matched, in words. Of a training crop, because that is what a step of the budget costs.
SIZES = {"parameters": "parameters", "gmac": "GMAC of a training crop"}
NO_BUDGET = ("epochs", "loss", "class_weights")  # epochs follow from the steps; the others say what is optimised
NONE = "none"
PARENTS = ("hparams.init_from", "step.of")  # settings that name the cells of its seed which a cell begins with
LOOKED = (
    "If a look decided to add seeds, more than 5 % of such reports have a false star: 11 % where 6 seeds are the most, "
    "17 to 18 % where 10 are (docs/statistics.md)."
)
NEAR = 0.05  # sizes that differ by less need no warning


def code_of(environment: Mapping[str, Any]) -> str:
    """The commit of the code that trained a cell, with the name of what it differs in where that was kept."""
    commit, patch = _say(environment.get("commit")), environment.get("patch")
    return f"{commit} with {patch_name(patch)}" if patch else commit


def patch_name(sha256: str) -> str:
    """The file of a report that holds the code.patch of its cells with this SHA-256."""
    return f"code-{sha256[:12]}.patch"


def processor_of(environment: Mapping[str, Any]) -> str:
    """The processor and the instructions that torch uses of it; empty for a cell of an earlier version."""
    return ", ".join(filter(None, (environment.get("processor"), environment.get("instruction_set"))))


# What may differ between cells, and how it is read where it is not one field of environment.json that all have.
CONDITIONS: dict[str, Callable[[Mapping[str, Any]], str] | None] = {
    "commit": code_of,
    "device": None,
    "processor": processor_of,
    "blas": lambda environment: str(environment.get("blas", "")),
    "python": None,
    "torch_threads": None,
    "versions": None,
}


def items(budget: Mapping[str, Any]) -> dict[str, Any]:
    """The budget of a variant, flat: "steps", "augmentation.crop"; see `fairness.budget`."""
    flat = {key: value for key, value in budget.items() if key != "augmentation"}
    return flat | {f"augmentation.{key}": value for key, value in budget.get("augmentation", {}).items()}


def planned(plan: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Every setting that the plan names for a variant, as `Run.resolved` has it, but for the seed."""
    if "differences" not in plan:  # of an earlier version, whose factors are all hyperparameters
        levels = plan["variants"][variant]["levels"]
        return {**plan["common"], **{f"hparams.{factor}": level for factor, level in levels.items()}}
    of_baseline = {key: pair[0] for of_variant in plan["differences"].values() for key, pair in of_variant.items()}
    of_variant = {key: pair[1] for key, pair in plan["differences"][variant].items()}
    return {**plan["common"], **of_baseline, **of_variant}


def other_settings(plan: Mapping[str, Any], variant: str, run: Mapping[str, Any]) -> list[str]:
    """Where the run of a cell, as its run.json has it, is not the one that is planned for the variant."""
    settings, differing = planned(plan, variant), []
    # With its defaults and by the content of its files; of an earlier version only what was given.
    given = {
        f"{part}.{name}": value for part in ("hparams", "data", "trainer") for name, value in run.get(part, {}).items()
    }
    for key, value in run.get("settings", given).items():
        # A path is where the data lie, and each seed has checkpoints of its own, and finds what it finds.
        if key not in settings or key in ("data.root", *PARENTS, "seed") or wanted(settings[key]):
            continue
        if settings[key] != value:
            differing.append(f"{key} {_say(value)}, planned {_say(settings[key])}")
    return differing


def statements(plan: Mapping[str, Any]) -> list[str]:
    """The budget, where it is not equal, what was matched and what was not, a sentence each; the unequal ones first."""
    return [*unequal(plan), *_tuning(plan), *_sizes(plan), *_matches(plan), *_budget(plan)]


def planned_seeds(plan: Mapping[str, Any]) -> str:
    """That other seeds are used than were planned, in a sentence; empty where none were added or left out, and for a
    plan of an earlier version."""
    planned, used = plan.get("seeds_planned"), plan["seeds"]
    if planned is None or {*planned} == {*used}:
        return ""
    statistics = plan.get("statistics", {})
    count = f"{len(planned)} seed{'s' * (len(planned) != 1)} planned"
    if without := [seed for seed in planned if seed not in used]:
        return f"{count}, {len(used)} used: without {_seeds(without)}."
    # Of fewer seeds no report has a star that could have decided on more.
    looked = ", looked at in between" if any(len(look) >= MIN_SEEDS for look in plan.get("looks", [])) else ""
    until, needed = statistics.get("until"), statistics.get("needed")
    if until is None or needed is None:
        more = f" {LOOKED}" if looked else ""
        return f"{count}, {len(used)} used{looked}.{more}"
    if len(used) > needed:
        asked = f"of which --until {until} asks {needed}{looked}"
    else:
        asked = f"as --until {until} asks" if len(used) == needed else f"of {needed} that --until {until} asks"
    return f"{count} for the variance, {len(used)} used, {asked}: stage one fixes variance and degrees of freedom."


def unequal(plan: Mapping[str, Any]) -> list[str]:
    """A sentence for each budget, other than the baseline's, that declared factors give to one or more variants."""
    if "budget" not in plan:
        return []
    base, tuned = items(plan["budget"][plan["baseline"]]), plan.get("tuning", {}).get("settings", {})
    variants: dict[str, list[str]] = {}  # by what they differ in
    for variant, budget in plan["budget"].items():
        budget_items = items(budget)
        differing = [
            key
            for key in base | budget_items
            if key not in (*NO_BUDGET, *tuned) and base.get(key) != budget_items.get(key)
        ]
        if differing:
            listed = ", ".join(
                f"{_words(key)} ({_say(budget_items.get(key))}, not {_say(base.get(key))})" for key in differing
            )
            variants.setdefault(listed, []).append(variant)
    return [
        f"Not of equal budget, as declared: {'; '.join(alike)} differ{'s' * (len(alike) == 1)} from {plan['baseline']} "
        f"in {listed}."
        for listed, alike in variants.items()
    ]


def deviations(plan: Mapping[str, Any], cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """Where the finished cells, by variant and seed, did not do what was planned or not under equal conditions."""
    sentences = _uneven(plan, cells)
    for variant, of_variant in cells.items():
        for seed, cell in of_variant.items():
            wrong = _amiss(plan, cell)
            sentences += [f"{variant} seed {seed} deviates from the plan: {'; '.join(wrong)}."] if wrong else []
    return sentences + _memory(cells) + _groups(cells) + _conditions(plan, cells)


def _uneven(plan: Mapping[str, Any], cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """Variants that lack seeds which others have: their means are over other replications."""
    seeds = sorted({seed for of_variant in cells.values() for seed in of_variant})
    lacking = {variant: [s for s in seeds if s not in of_variant] for variant, of_variant in cells.items()}
    listed = "; ".join(f"{variant} lacks {_seeds(without)}" for variant, without in lacking.items() if without)
    reason = "Differences take out what a seed does to all variants; means of a variant do not."
    return [f"Not every variant has the seeds {_listed(seeds)}: {listed}. {reason}"] if listed else []


def _memory(cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """Cells whose micro-batches were divided because the memory of a device ran out, and what it changes in them."""
    divided: dict[tuple[int, int | None], dict[str, list[int]]] = {}
    for variant, of_seeds in cells.items():
        for seed, cell in of_seeds.items():
            if parts := cell.result.get("accumulated"):
                divided.setdefault((parts, cell.result.get("norm_batch")), {}).setdefault(variant, []).append(seed)
    sentences = []
    for (parts, seen), of_variants in divided.items():
        listed = ", ".join(f"{variant} {_seeds(seeds)}" for variant, seeds in of_variants.items())
        said = f"The memory of the device ran out, so that each step accumulated {parts} parts: {listed}."
        batch = f"Their batch norm saw {_images(seen)} at a time, which can change scores." if seen else ""
        sentences.append(f"{said} {batch or 'The batch is the same, and its loss is the mean over them.'}")
    return sentences


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _groups(cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """That cells of the same images name other groups of them, or none: then nothing is known of other images."""
    by_groups: dict[tuple[str, ...] | None, list[str]] = {}
    images = set()
    for variant, of_seeds in cells.items():
        for seed, cell in of_seeds.items():
            stored = None if cell.groups is None else tuple(cell.groups)
            by_groups.setdefault(stored, []).append(f"{variant} seed {seed}")
            images.add(tuple(cell.image_names))
    if len(by_groups) < 2 or len(images) > 1:
        return []
    usual = max((groups for groups in by_groups if groups is not None), key=lambda groups: len(by_groups[groups]))
    parts = []
    for groups, names in by_groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if groups != usual:
            parts.append(f"{'none' if groups is None else 'others'} in {', '.join(names[:3])}{more}")
    said = f"Cells do not name the same groups of test images ({'; '.join(parts)})"
    return [f"{said}: every interval is for these images only."]


def _amiss(plan: Mapping[str, Any], cell: Cell) -> list[str]:
    """What of one cell is not as planned."""
    wrong = []
    counted, parameters = cell.result.get("params"), plan["variants"][cell.variant].get("parameters")
    if None not in (counted, parameters) and counted != parameters:
        wrong.append(f"{counted:,} parameters, planned {parameters:,}")
    budget = plan.get("budget", {}).get(cell.variant, {})
    if "steps" in cell.result and "steps" in budget:
        if cell.result["steps"] != budget["steps"]:
            wrong.append(f"{cell.result['steps']} steps, planned {budget['steps']}")
        return wrong
    settings = planned(plan, cell.variant)
    if "trainer.max_steps" not in settings and cell.result.get("epochs") != settings.get("trainer.max_epochs"):
        wrong.append(f"{_epochs(cell.result.get('epochs') or 0)}, planned {settings.get('trainer.max_epochs')}")
    return wrong


def _conditions(plan: Mapping[str, Any], cells: Mapping[str, Mapping[int, Cell]]) -> list[str]:
    """Where code, versions, threads or machines differ between cells, and whether that goes along with the variants."""
    sentences = []
    finished = [cell for of_variant in cells.values() for cell in of_variant.values()]
    for key, read in CONDITIONS.items():
        groups: dict[str, dict[str, list[int]]] = {}  # value -> variant -> seeds
        for cell in finished:
            value = read(cell.environment) if read else _say(cell.environment.get(key))
            if not value:  # earlier versions did not store it
                continue
            groups.setdefault(value, {}).setdefault(cell.variant, []).append(cell.seed)
        if len(groups) < 2:
            continue
        trained = [variant for of_value in groups.values() for variant in of_value]
        listed = "; ".join(
            f"{_apart(value, groups) if key == 'versions' else value}: "
            f"{', '.join(f'{v} {_seeds(s)}' for v, s in of_value.items())}"
            for value, of_value in groups.items()
        )
        what = (
            "no variant was trained under more than one of them, so what looks like a variant's effect may be theirs"
            if len(trained) == len(set(trained))
            else "last digits may differ"
        )
        sentences.append(f"Cells were trained with different {key} ({listed}): {what}.")
    commits = {str(cell.environment.get("commit")) for cell in finished}
    if len(commits) == 1 and (plan["commit"],) != (*commits,):
        sentences.append(f"The cells were trained at commit {commits.pop()}, the plan was written at {plan['commit']}.")
    return sentences


def _apart(value: str, groups: Mapping[str, Any]) -> str:
    """Of many versions those in which the groups differ."""
    parsed = {key: {} if key == NONE else json.loads(key) for key in groups}
    keys = sorted({name for of_one in parsed.values() for name in of_one})
    differing = [name for name in keys if len({of_one.get(name) for of_one in parsed.values()}) > 1]
    return ", ".join(f"{name} {parsed[value].get(name, 'unknown')}" for name in differing)


def _budget(plan: Mapping[str, Any]) -> list[str]:
    """The baseline's budget, which is everybody's where nothing is said to the contrary."""
    if "budget" not in plan:
        return []
    b = plan["budget"][plan["baseline"]]
    augmentation = ", ".join(
        f"{key} {_say(value)}" for key, value in b["augmentation"].items() if value or key == "crop"
    )
    tuned = plan.get("tuning", {}).get("settings", {})
    recipe = ", ".join(
        f"{_words(key)} {'as tuned' if key in tuned else _say(b[key])}"
        for key in ("optimizer", "lr", "momentum", "weight_decay", "schedule")
    )
    extras = [f"{_words(key)} {_say(b[key])}" for key in ("warmup", "gradient_clip_val") if b[key]]
    if (average := b.get("average", "none")) != "none":
        extras.append(f"average {average}" + f" (decay {b['ema_decay']})" * (b.get("ema_decay") is not None))
    adds = f" in {b['accumulation']} accumulated parts" if b["accumulation"] > 1 else ""
    whose = plan["baseline"] if unequal(plan) else "every variant"
    seen = f"{b['images']:,} images seen, {_epochs(b['epochs'])} of {b['train_images']:,} training images"
    lines = (
        f"{b['steps']:,} optimiser steps of {b['batch']} images{adds} ({seen})",
        f"augmentation {augmentation}",
        ", ".join([recipe, *extras]),
        f"loss {b['loss']}, class weights {_say(b['class_weights'])}",
        f"precision {b['precision']}",
        f"from {b['start']}" + (f", which has {b['steps_before']:,} steps behind it" if b["steps_before"] else ""),
    )
    return [f"Budget of {whose}: {'; '.join(lines)}."]


def _tuning(plan: Mapping[str, Any]) -> list[str]:
    """That every variant was tried with the same values, which it took, and where the best lies at the end of them."""
    if not (tuning := plan.get("tuning")):
        return []
    tried = " and ".join(f"{name} {_listed_values(values)}" for name, values in tuning["settings"].items())
    chosen = "; ".join(
        f"{variant}: {', '.join(f'{name} {_say(value)}' for name, value in values.items())}"
        for variant, values in tuning["chosen"].items()
    )
    said = (
        f"Tuned alike: each variant was tried with {tried} by its validation mIoU, with a seed of its "
        f"own that no score of this report has, and took its best. {chosen}."
    )
    sentences = [said]
    for name, values in tuning["settings"].items():
        numbers = [value for value in values if type(value) in (int, float)]
        ends = {min(numbers), max(numbers)} if len(numbers) == len(values) else set()
        at_end = [variant for variant, of_one in tuning["chosen"].items() if of_one[name] in ends]
        if at_end:
            whose = "every variant" if len(at_end) == len(tuning["chosen"]) else " and of ".join(at_end)
            sentences.append(
                f"The best {name} of {whose} lies at the end of what was tried: there may be a better one beyond."
            )
    return sentences


def _listed_values(values: Sequence[Any]) -> str:
    return f"{', '.join(map(_say, values[:-1]))} and {_say(values[-1])}"


def _sizes(plan: Mapping[str, Any]) -> list[str]:
    """How unequal the variants are in size and compute, which no budget evens out."""
    baseline, parts, far = plan["variants"][plan["baseline"]], list[str](), False
    for key, title, form in (("parameters", "parameters", ",d"), ("gmac", "GMAC of a test image", ".3g")):
        values = [variant[key] for variant in plan["variants"].values()]
        if None in values or not baseline[key]:
            continue
        low, high = min(values) / baseline[key] - 1, max(values) / baseline[key] - 1
        far = far or max(-low, high) > NEAR
        span = f"{min(values):{form}} to {max(values):{form}} ({_percent(low)} to {_percent(high)})"
        parts.append(f"{title} {span}" if min(values) < max(values) else f"{title} {values[0]:{form}} in every variant")
    warning = " Between variants of unequal size, a difference in score can be one of size." if far else ""
    return parts and [f"Sizes, and how far from those of {plan['baseline']}: {'; '.join(parts)}.{warning}"]


def _matches(plan: Mapping[str, Any]) -> list[str]:
    """Which arms were made as large as which, by what, and how near they came."""
    sentences = []
    for of in dict.fromkeys(arm["of"] for arm in plan.get("matched", {}).values()):
        arms = {name: arm for name, arm in plan["matched"].items() if arm["of"] == of}
        listed = []
        for name, arm in arms.items():
            by = f", by {arm['by']} from {_say(arm['values'][0])} to {_say(arm['values'][1])}" if arm["by"] else ""
            listed.append(f"{name} with {arm['like']} (ratio {arm['ratio']:.3f}{by})")
        most = max(arm["tolerance"] for arm in arms.values())
        sentences.append(f"Matched in {SIZES[of]}, within {100 * most:.0f} %: {'; '.join(listed)}.")
    return sentences


def _percent(share: float) -> str:
    digits = 0 if abs(share) >= 0.01 else 1
    return f"{100 * share:+.{digits}f} %" if round(100 * share, digits) else "0 %"


def _words(item: str) -> str:
    """An item of the budget as a sentence has it."""
    words = {"gradient_clip_val": "gradient clipping at", "start": "what it starts from"}
    words |= {"rates": "the factor of lr and the weight decay of each group of parameters"}
    return words.get(item, item.replace("_", " ").replace("augmentation.", "the augmentation's "))


def _say(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_say(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: NONE}[value]
    if isinstance(value, int) and value > 999:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {_listed(seeds)}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
