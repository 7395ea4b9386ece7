"""A W&B workspace and a W&B report of an experiment, built as code from its stored cells.

    python -m experiments.dashboard outputs/ablate_upsampling
    python -m experiments.dashboard outputs/ablate_upsampling --publish

Curves with a band over the seeds, scores of each class, masks side by side, what runs differ in, and the tables of
experiments.report. The first form writes dashboard.json and asks nobody; --publish saves both on the server. The runs
are those of the experiment's folder, logged with --logger wandb and, if that was offline, uploaded by experiments.sync.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import wandb

from experiments.evidence.experiment import load_experiment
from experiments.evidence.failed import failed_line
from experiments.reports.commands import show_command
from experiments.reports.formats import rows_to_markdown
from experiments.reports.tables import Table, make_notes, make_tables
from experiments.reports.write import warnings
from experiments.shell.command import command
from experiments.shell.files import write_json
from experiments.shell.flags import Parser, refuse
from experiments.tracking.loggers import STEP
from experiments.tracking.merge import logged_in

CURVES = {"val/miou": "validation mIoU", "train/loss_epoch": "training loss", "val/loss": "validation loss"}
CURVES |= {"val/boundary_f1": "validation boundary F1"}
BAND = "mean of the seeds, band from the smallest to the largest"
WIDTH, WIDE = 12, 24  # of a panel: half of a report's grid, and all of it


def extra(name: str) -> Any:
    """A module of the package wandb_workspaces, imported when a dashboard is built: an import needs no extra.

    Raises ValueError where the package is missing.
    """
    try:
        return import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise ValueError('experiments.dashboard needs a package: pip install -e ".[wandb]"') from error


@dataclass(frozen=True)
class Content:
    """What a dashboard shows of an experiment beside what its runs logged."""

    group: str  # of the runs on the server: the name of the experiment's folder
    plan: Mapping[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]
    warnings: Sequence[str]

    def __post_init__(self) -> None:
        if set(self.group) & set("'\"\\"):
            raise ValueError(f"W&B cannot filter runs by a name with a quote in it: rename the folder {self.group}")


def content(folder: Path) -> Content:
    """What is stored of the experiment in `folder`.

    Raises FileNotFoundError where there is no experiment, ValueError where no cell is finished or a file is damaged.
    """
    experiment = load_experiment(folder)
    if not experiment.finished():
        raise ValueError(f"{folder} has no finished cell, so there is nothing to show: {experiment.plan['command']}")
    tables = [table for table in make_tables(experiment) if table.rows]
    plan = experiment.plan
    plan = plan | {"command": show_command(plan["command"], plan["data"])}
    said = [*filter(None, [failed_line(experiment)]), *warnings(experiment)]
    return Content(folder.absolute().name, plan, tables, make_notes(experiment), said)


def workspace(shown: Content, entity: str, project: str) -> Any:
    """The workspace; nobody is asked for it."""
    wr, ws, expr = extra("reports.v2"), extra("workspaces"), extra("expr")
    sections = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in make_panels(shown).items()]
    text = "\n\n".join(
        [*shown.warnings, *(f"**{table.title}**\n\n{rows_to_markdown(table)}" for table in shown.tables)]
    )
    statistics = wr.MarkdownPanel(markdown=text, layout=wr.Layout(w=WIDE, h=12))
    sections.insert(1, ws.Section(name="Statistics", panels=[statistics], is_open=True))
    return ws.Workspace(
        name=shown.group,
        entity=entity,
        project=project,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=_runs(shown)),
        runset_settings=ws.RunsetSettings(
            filters=_filters(shown),
            groupby=[expr.Config("variant")],
            pinned_columns=["run:displayName", "config:variant.value", "config:seed.value", "summary:test/miou"],
        ),
    )


def report(shown: Content, entity: str, project: str) -> Any:
    """The report; nobody is asked for it."""
    wr = extra("reports.v2")
    # Without entity and project a run set is that of the report's own project; with them, building it asks the server.
    runs = {"filters": _filters(shown), "groupby": ["config.variant"]}
    blocks: list[Any] = [wr.P(text=shown.plan["question"])]
    blocks += [wr.CalloutBlock(text=line) for line in shown.warnings]
    for table in shown.tables:
        blocks += [wr.H2(text=table.title), wr.MarkdownBlock(text=rows_to_markdown(table))]
    blocks += [wr.H2(text="What the numbers are"), wr.UnorderedList(items=list(shown.notes))]
    for title, panels in make_panels(shown).items():
        blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[wr.Runset(name=shown.group, **runs)], panels=panels)]
    made = f"{shown.plan['command']}\n# commit {shown.plan['commit']}, {shown.plan['device']}"
    blocks += [wr.H2(text="Made by"), wr.CodeBlock(code=made, language="python")]
    return wr.Report(
        project=project,
        entity=entity,
        title=shown.plan["experiment"],
        description=shown.plan["question"],
        blocks=blocks,
        width="fluid",
    )


def make_panels(shown: Content) -> dict[str, list[Any]]:
    """The panels by section, new ones at each call: W&B gives each an id of its own."""
    wr = extra("reports.v2")
    by_variant = {"groupby": wr.Config("variant"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    half, whole = wr.Layout(w=WIDTH, h=8), wr.Layout(w=WIDE, h=12)
    curves = [
        wr.LinePlot(
            title=f"{title}: {BAND}",
            x=STEP,
            y=[name],
            log_y=name.endswith("loss"),
            max_runs_to_show=_runs(shown),
            layout=half,
            **by_variant,
        )
        for name, title in CURVES.items()
    ]
    scores = {"test mIoU": ["test/miou"]}
    scores |= {"test IoU by class": [f"test/iou/{name}" for name in shown.plan["class_names"]]}
    bars = [
        wr.BarPlot(title=f"{title}: {BAND}", metrics=metrics, max_runs_to_show=_runs(shown), layout=half, **by_variant)
        for title, metrics in scores.items()
    ]
    return {
        "Curves": curves,
        "Classes": [*bars, wr.WeavePanelSummaryTable(table_name="test/per_class", layout=whole)],
        "Masks side by side": [
            wr.MediaBrowser(
                title="the same test images, truth and prediction",
                media_keys=["test/samples"],
                mode="grid",
                grid_x_axis="run",
                grid_y_axis="index",
                layout=whole,
            ),
            wr.MediaBrowser(title="confusion of the classes", media_keys=["test/confusion_matrix"], layout=whole),
        ],
        "What runs differ in": [wr.RunComparer(diff_only="split", layout=whole)],
    }


def _filters(shown: Content) -> list[Any]:
    return [extra("expr").Metric("Group") == shown.group]


def _runs(shown: Content) -> int:
    return len(shown.plan["variants"]) * len(shown.plan["seeds"])


def specification(built: Any) -> dict[str, Any]:
    """What the server would be given."""
    plain: dict[str, Any] = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return plain


@command()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of an experiment, such as outputs/ablate_upsampling")
    parser.add_argument("--entity", help="user or team on the server (default: that of the login)")
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT", "seglab"), help="project on the server")
    parser.add_argument("--publish", action="store_true", help="save both on the server")
    parser.add_argument("--out", type=Path, help="file of what the server is given (default: FOLDER/dashboard.json)")
    args = parser.parse_args()
    os.environ.pop("WANDB_MODE", None)  # which said offline when the runs were made
    try:
        extra("workspaces")  # before anything is read or asked for
        if args.publish and not logged_in():
            raise ValueError("--publish needs a login: type `wandb login`, or set WANDB_API_KEY; without, leave it out")
        entity = args.entity or (wandb.Api().default_entity if args.publish else "") or ""
        shown = content(args.folder)
        built = {"workspace": workspace(shown, entity, args.project), "report": report(shown, entity, args.project)}
        out = args.out or args.folder / "dashboard.json"
        write_json(out, {name: specification(document) for name, document in built.items()})
        print(f"{out}: workspace and report of {shown.group}")
        if args.publish:
            for document in built.values():
                document.save()
    except Exception as error:
        if not args.publish and not isinstance(error, ValueError | FileNotFoundError):
            raise
        refuse(str(error))  # W&B raises several kinds for a key or a project that it does not like


if __name__ == "__main__":
    main()
