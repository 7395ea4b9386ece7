"""The methods paragraph of a paper, drafted from the plan and the cells: what a reviewer asks for, and nothing that is
not in them. A citation in the text is `[@DOI or address]`, which each form of it writes in its own way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.evidence.deviations import code_of, processor_of, unequal
from experiments.evidence.energy import Energies, digits
from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored, scored
from experiments.reports.citations import CODECARBON, citations_of
from experiments.reports.formats import escape_markdown
from experiments.reports.tex import escape as escape_latex
from experiments.shell.citation import bibtex, key_of
from lightning_modules.components.scores.table import PER_IMAGE, PERCENT

HOTHORN, STEIN = "10.1002/bimj.200810425", "10.1214/aoms/1177731088"
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")  # of a commit, which its first digits name
CITED = re.compile(r"\[@([^\]]+)\]")

LOSSES = {
    "ce": "cross-entropy, averaged over the labelled pixels",
    "ce_sum": "cross-entropy, added up over the pixels of an image",
    "ce_per_pixel": "cross-entropy over the number of labelled pixels",
    "ce_border": "cross-entropy weighted towards the borders between touching objects",
    "focal": "the focal loss",
    "dice": "the Dice loss",
    "jaccard": "the Jaccard loss",
    "lovasz": "the Lovász-softmax loss",
}
SCHEDULES = {
    "constant": "which stays",
    "poly": "which falls to 0 by the poly schedule of power 0.9",
    "step": "which is divided by 10 after each third of the training",
}


def methods(experiment: Experiment) -> list[tuple[str, str]]:
    """Heading and text of each paragraph."""
    plan = experiment.plan
    parts = [
        ("Data", _data(experiment)),
        ("Networks", _networks(experiment)),
        ("Training", _training(experiment)),
        ("Settings", _tuning(plan)),
        ("Scores", _scores(experiment)),
        ("Statistics", _statistics(experiment)),
        ("Computation", _computation(experiment)),
    ]
    return [(head, " ".join(filter(None, sentences))) for head, sentences in parts if any(sentences)]


def cited(experiments: Sequence[Experiment]) -> list[str]:
    """DOIs and addresses of what the paragraphs cite, each once, in the order of the text; then of the other scores."""
    text = "\n".join(text for experiment in experiments for _, text in methods(experiment))
    scores = [PER_IMAGE[name].cited for experiment in experiments for name in PER_IMAGE if _stored(experiment, name)]
    return list(dict.fromkeys([*CITED.findall(text), *filter(None, scores)]))


def to_bibtex(experiments: Sequence[Experiment]) -> str:
    return "\n\n".join(bibtex(one) for one in cited(experiments)) + "\n"


def to_markdown(experiments: Sequence[Experiment]) -> str:
    """For pandoc: `[@key]` is an entry of references.bib."""
    return _written(experiments, "# {}", "**{}.** {}", lambda text: _escaped(text, escape_markdown, " [@", "; @", "]"))


def to_latex(experiments: Sequence[Experiment]) -> str:
    needs = "Needs \\bibliography{references}, a style and \\usepackage{url}."
    return f"% Written by python -m experiments.report. {needs}\n\n" + _written(
        experiments,
        "\\subsection{{{}}}",
        "\\paragraph{{{}.}} {}",
        lambda text: _escaped(text, escape_latex, "~\\cite{", ",", "}"),
    )


def _written(experiments: Sequence[Experiment], head: str, form: str, escape: Callable[[str], str]) -> str:
    parts = []
    for experiment in experiments:
        parts += [head.format(escape(experiment.plan["experiment"]))] * (len(experiments) > 1)
        parts += [form.format(name, escape(text)) for name, text in methods(experiment)]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str, escape: Callable[[str], str], begin: str, between: str, end: str) -> str:
    """The text for a format; its citations are none of its words, and those in a row are one."""
    pieces = re.split(rf"((?: {CITED.pattern})+)", text)
    out = ""
    for words, citations in zip(pieces[::3], [*pieces[1::3], ""], strict=True):
        out += _kept(words, escape)
        keys = [key_of(address) for address in CITED.findall(citations)]
        out += f"{begin}{between.join(keys)}{end}" if keys else ""
    return out


def _kept(text: str, escape: Callable[[str], str]) -> str:
    """Escaped, with the spaces at its ends."""
    body = text.strip()
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if body else ""
    return before + (escape(body) if body else "") + after


# ---- the paragraphs, each a list of sentences


def _data(experiment: Experiment) -> list[str]:
    plan = experiment.plan
    budget = plan.get("budget", {}).get(plan["baseline"], {})
    kind = "test" if scored(plan) == "test" else scored(plan)
    counts = sorted({len(cell.image_names) for cell in experiment.finished()})
    tested = _span([float(count) for count in counts], "{:,.0f}")
    parts = [f"{budget['train_images']:,} training"] if "train_images" in budget else []
    parts += [f"{plan['validation_images']:,} validation"] if "validation_images" in plan and kind == "test" else []
    parts.append(f"{tested} {'test' if kind == 'test' else 'validation'} images")
    size = f" of {budget['test_size'][0]} x {budget['test_size'][1]} pixels" if budget.get("test_size") else ""
    scale = float(plan["common"].get("data.scale") or 1)
    resized = f" after scaling by {scale:g}" if scale != 1 else ""
    names = plan["class_names"]
    listed = f" ({_listed(names)})" if len(names) <= 12 else ""
    sentences = [
        f"The data set is {plan['data']}{_citing(citations_of(plan, 'data'))}, with {_listed(parts)}{size}{resized}.",
        f"There are {len(names)} classes{listed}.",
    ]
    if groups := experiment.groups:
        count = len(set(groups))
        sentences.append(f"The images form {count} groups, and the errors within a group go together.")
    return [*sentences, plan["data_note"]]


def _networks(experiment: Experiment) -> list[str]:
    plan = experiment.plan
    variants, factors = plan["variants"], plan["factors"]
    crossed = len(factors) > 1 and not experiment.no_effects
    levels = [f"{name} ({_listed([str(level) for level in of_one])})" for name, of_one in factors.items()]
    architectures = _citing(citations_of(plan, "networks"))
    what = f"the factor{'s' * (len(levels) > 1)} {_listed(levels)}" if levels else _listed(list(variants))
    how = f"{what}{', fully crossed' if crossed else ''}"
    compared = f"We compare {len(variants)} variants of {_class(plan)}{architectures} that differ in {how}"
    sentences = [f"{compared}; the baseline is {plan['baseline']}."]
    sizes = []
    for key, unit, form in (
        ("parameters", "parameters", "{:,.0f}"),
        ("gmac", as_scored("GMAC for a test image", plan), "{:.3g}"),
    ):
        values = [variant[key] for variant in variants.values()]
        if None not in values:
            sizes.append(f"{_span(values, form)} {unit}")
    sentences += [f"They have {_listed(sizes)}."] if sizes else []
    for of in dict.fromkeys(arm["of"] for arm in plan.get("matched", {}).values()):
        arms = [arm for arm in plan["matched"].values() if arm["of"] == of]
        most = max(abs(arm["ratio"] - 1) for arm in arms)
        what = {"parameters": "parameters", "gmac": "multiply-accumulates"}.get(of, of)
        who = "One of them was" if len(arms) == 1 else f"{len(arms)} of them were"
        sentences.append(
            f"{who} built to have as many {what} as another: the ratio is within {max(100 * most, 0.1):.1f} % of 1."
        )
    return [*sentences, plan["scale_note"]]


def _training(experiment: Experiment) -> list[str]:
    plan = experiment.plan
    if "budget" not in plan:
        return []
    b, tuned = plan["budget"][plan["baseline"]], plan.get("tuning", {}).get("settings", {})
    differing = unequal(plan)
    who = "The baseline" if differing else "Every network"
    momentum = {"adamw": "beta1", "sgd": "momentum"}.get(b["optimizer"], "momentum")
    optimiser = {"adamw": "AdamW", "sgd": "SGD"}.get(b["optimizer"], b["optimizer"])
    rate = "a learning rate that was tuned (see below)" if "lr" in tuned else f"the learning rate {b['lr']:g}"
    optimiser += _citing(citations_of(plan, "optimizer"))
    schedule = f"{SCHEDULES.get(b['schedule'], b['schedule'])}{_citing(citations_of(plan, 'schedule'))}"
    length = f"{b['epochs']} epoch{'s' * (b['epochs'] != 1)} ({b['steps']:,} optimiser steps of {b['batch']} images)"
    decay = f"{momentum} {b['momentum']:g} and weight decay {b['weight_decay']:g}"
    trained = f"{who} was trained for {length} from {b['start']}"
    sentences = [f"{trained}, by {optimiser} with {rate}, {schedule}, {decay}."]
    sentences += [f"The rate rises over the first {100 * b['warmup']:g} % of the steps."] if b["warmup"] else []
    sentences += [f"Gradients are cut off at a norm of {b['gradient_clip_val']:g}."] if b["gradient_clip_val"] else []
    weights = b["class_weights"]
    weighed = "" if weights in (None, "none") else f", with the class weights {_weights(weights)}"
    weighed += _citing(citations_of(plan, "class_weights"))
    sentences.append(f"The loss is {LOSSES.get(b['loss'], b['loss'])}{_citing(citations_of(plan, 'loss'))}{weighed}.")
    a = b["augmentation"]
    seen = [f"crops of {a['crop'][0]} x {a['crop'][1]} pixels"] if isinstance(a.get("crop"), list) else []
    seen += [f"scaled by a factor between {a['zoom'][0]:g} and {a['zoom'][1]:g}"] if a.get("zoom") else []
    seen += ["mirrored at random"] if a.get("flip") else []
    seen += (
        [f"changed in brightness, contrast and saturation by up to {100 * a['jitter']:g} %"] if a.get("jitter") else []
    )
    seen += [f"deformed elastically with {a['elastic']:g} pixels of standard deviation"] if a.get("elastic") else []
    sentences.append(f"The networks saw {_listed(seen)}." if seen else "")
    if b.get("precision", "32-true") != "32-true":
        sentences.append(f"The precision is {b['precision']}.")
    average = b.get("average", "none")
    if average != "none":
        what = {
            "recalibrate": "the statistics of batch norms measured anew on training images after the last step",
            "ema": "an exponential moving average of the weights",
        }
        sentences.append(f"What is scored has {_listed([what.get(part, part) for part in average.split('+')])}.")
    return [*sentences, *differing]


def _tuning(plan: Mapping[str, Any]) -> list[str]:
    if not (tuning := plan.get("tuning")):
        return ["No setting was searched within this experiment: all are those of its plan."]
    tried = [
        f"{name} ({_listed([f'{v:g}' if isinstance(v, float) else str(v) for v in values])})"
        for name, values in tuning["settings"].items()
    ]
    how = "took what had the best validation mIoU with a seed that no score of this report has"
    return [f"For each variant alike we tried {_listed(tried)}, and {how}."]


def _scores(experiment: Experiment) -> list[str]:
    return [
        as_scored(
            "The score is the mean intersection over union (mIoU) on the test images: the confusion matrices of all "
            "images are added up, and the IoU of the classes is averaged. It is of the weights after the last step; "
            "no checkpoint was chosen by its score. Differences of scores are in percentage points.",
            experiment.plan,
        ),
        *_beside(experiment),
    ]


def _beside(experiment: Experiment) -> list[str]:
    """The other scores of outlines, of those that are stored."""
    told = {
        "boundary_f1": "boundary F1, the agreement of outlines within 0.75 % of the image diagonal",
        "boundary_iou": "boundary IoU, the mIoU of the pixels that lie at most 2 % of it from an outline",
        "surface": "the normalised surface distance (NSD), the share of the outlines that lie at most 2 pixels apart",
    }
    parts = [f"{words} [@{PER_IMAGE[name].cited}]" for name, words in told.items() if _stored(experiment, name)]
    return [f"Outlines are scored by {_listed(parts)}."] if parts else []


def _stored(experiment: Experiment, name: str) -> bool:
    """Whether all cells have this array of the scores."""
    return all(name in cell.arrays for cell in experiment.finished())


def _statistics(experiment: Experiment) -> list[str]:
    plan, family = experiment.plan, experiment.family
    done = [len(of_seeds) for of_seeds in experiment.cells.values()]
    each = _span([float(count) for count in done], "{:.0f}")
    same = ", the same for all" if len({tuple(of_one) for of_one in experiment.cells.values()}) == 1 else ""
    sentences = [f"Each variant was trained with {each} random seed{'s' * (max(done) != 1)}{same}."]
    if max(done) < len(plan["seeds"]) or min(done) < len(plan["seeds"]):
        sentences.append(f"Planned were {len(plan['seeds'])}.")
    if not family.judged:
        return [*sentences, "No interval is given."]
    images = as_scored(
        "for other seeds on these test images, not for other images"
        if family.images_only
        else f"for other seeds and for other images of the same kind, of which the test set has {family.groups} groups",
        plan,
    )
    if family.separate:
        sentences.append(
            "Differences to the baseline are judged by paired t tests over the seeds, with Bonferroni's correction "
            f"for {family.judged} comparisons."
        )
    else:
        what = f"{family.judged} differences{' and effects' if experiment.effects else ''}"
        sd = f"{family.df:g} degrees of freedom; {PERCENT[1] * family.sd:.2f} points of standard deviation"
        sentences += [
            f"A score is modelled as variant + seed + residual, whose variance all variants share ({sd}).",
            f"The intervals of the {what} hold together with 95 %, by the largest absolute t [@{HOTHORN}].",
        ]
    sentences.append(f"They are {images}. A star marks an interval that leaves out 0.")
    if plan.get("statistics", {}).get("until"):
        sentences.append(
            f"Seeds were added until the intervals were as narrow as planned, by Stein's procedure [@{STEIN}]."
        )
    if experiment.margin is not None:
        sentences.append(f"Two variants count as equivalent within {experiment.margin:g} points.")
    return [*sentences, "The intervals do not allow for other training images, another split or other settings."]


def _computation(experiment: Experiment) -> list[str]:
    cells = experiment.finished()
    environments = [cell.environment for cell in cells]
    devices = _distinct(str(e.get("device", "")) for e in environments)
    processors = _distinct(processor_of(e) for e in environments)
    seconds = [cell.result["seconds"] for cell in cells if isinstance(cell.result.get("seconds"), int | float)]
    sentences = (
        [f"The networks were trained on {_listed(devices)}{f' ({_listed(processors)})' if processors else ''}."]
        if devices
        else []
    )
    if len(seconds) == len(cells):
        hours = sum(seconds) / 3600
        sentences.append(f"The {len(cells)} trainings took {hours:.1f} hours in all." if hours >= 0.1 else "")
    sentences.append(_energy(experiment))
    versions = _distinct(
        ", ".join(f"{name} {version}" for name, version in e.get("versions", {}).items()) for e in environments
    )
    python = _distinct(str(e.get("python", "")) for e in environments)
    software = _citing(citations_of(experiment.plan, "software"))
    if len(versions) == 1:
        sentences.append(f"Software{software}: {f'Python {python[0]}, ' if len(python) == 1 else ''}{versions[0]}.")
    codes = _distinct(code_of(e) for e in environments)
    sentences.append(f"The code is SegLab at commit {_listed(codes)}." if codes else "")
    return [shortened(sentence) for sentence in (*sentences, *experiment.deviations)]


def _energy(experiment: Experiment) -> str:
    energies = Energies(experiment)
    if not (values := [*energies.watt_hours.values()]):
        return ""
    some = "The" if energies.measured == energies.trainings else f"{energies.measured} of the"
    return (
        f"{some} {energies.trainings} trainings used {sum(values):,.{digits([sum(values)])}f} Wh, by the counters of "
        f"{_listed(energies.words)}, which count all that ran there, read with {_listed(energies.software)} "
        f"[@{CODECARBON}]."
    )


# ---- words


def shortened(text: str) -> str:
    """With the first digits of each commit."""
    return HASH.sub(r"\1", text)


def _class(plan: Mapping[str, Any]) -> str:
    name = str(plan["common"].get("module", "")).rpartition(".")[2].removesuffix("Module")
    return name or "the networks"


def _citing(addresses: Sequence[str]) -> str:
    return "".join(f" [@{address}]" for address in addresses)


def _weights(weights: Any) -> str:
    return _listed([f"{weight:g}" for weight in weights]) if isinstance(weights, list) else str(weights)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _distinct(values: Any) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]
