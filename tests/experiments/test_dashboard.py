"""The workspace and the report are compared with a golden file; SEGLAB_GOLDEN=1 writes it anew, to be read in the
diff."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from handmade import write_experiment
from wandb_server import WandbServer

from experiments.dashboard import Content, content, main, report, specification, workspace
from experiments.reports.formats import rows_to_markdown
from experiments.reports.tables import Table

pytestmark = pytest.mark.extra("wandb", "wandb_workspaces")
GOLDEN = Path(__file__).parents[1] / "data" / "dashboard.json"
SHOWN = Content(
    group="ablate_something",
    plan={
        "experiment": "ablate_something",
        "question": "Nearest or transposed?",
        "variants": {"nearest": {}, "transposed-2": {}},
        "seeds": [0, 1, 2],
        "class_names": ["background", "disc"],
        "command": "python -m experiments.ablate_something",
        "commit": "ab12",
        "device": "CPU",
    },
    tables=[
        Table(
            *("scores", "Test scores", ["variant", "mIoU (%)"], [["nearest", "82.0*"], ["transposed-2", "80.5"]]),
            best=[(0, 1)],
            notes=["* p below 5 % over 3 seeds."],
        )
    ],
    notes=["Mean over seeds."],
    warnings=["Partial: 5 of 6 cells are finished."],
)


def without_ids(spec: Any) -> Any:
    """W&B draws an id for each panel and run set."""
    if isinstance(spec, dict):
        return {key: without_ids(value) for key, value in spec.items() if key not in ("id", "__id__")}
    return [without_ids(value) for value in spec] if isinstance(spec, list) else spec


def find(spec: Any, key: str) -> list[Any]:
    """Every value of a key, at any depth."""
    inner = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else []
    own = [spec[key]] if isinstance(spec, dict) and key in spec else []
    return own + [value for one in inner for value in find(one, key)]


def test_both_are_what_the_golden_file_says() -> None:
    built = {"workspace": workspace(SHOWN, "someone", "seglab"), "report": report(SHOWN, "someone", "seglab")}
    found = without_ids({name: specification(one) for name, one in built.items()})
    if os.environ.get("SEGLAB_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("build", [workspace, report])
def test_both_show_what_an_ablation_needs(build: Any) -> None:
    spec = specification(build(SHOWN, "", "seglab"))
    kinds = find(spec, "viewType")
    for kind in ("Run History Line Plot", "Bar Chart", "Weave", "Media Browser", "Run Comparer"):
        assert kind in kinds, kind
    curves = [
        one["config"] for one in find(spec, "panels") for one in one if isinstance(one, dict) and "viewType" in one
    ]
    curves = [one for one in curves if "xAxis" in one]
    assert {"val/miou", "train/loss_epoch"} <= {name for one in curves for name in one["metrics"]}
    for one in curves:
        assert (one["xAxis"], one["groupBy"]) == ("trainer/global_step", "variant.value")
        assert (one["groupAgg"], one["groupArea"], one["limit"]) == ("mean", "minmax", 6)
    assert ["test/iou/background", "test/iou/disc"] in find(spec, "metrics")
    assert ["test/samples"] in find(spec, "mediaKeys")
    runs = [one for sets in find(spec, "runSets") for one in sets]
    for one in runs:
        (only,) = one["filters"]["filters"]
        assert (only["key"], only["value"]) == ({"section": "run", "name": "group"}, "ablate_something")
        assert one["grouping"] == [{"section": "config", "name": "variant.value"}]
    text = json.dumps(spec)
    assert r"| nearest | **82.0\\*** |\n" in text and r"\n\n\\* p below 5 % over 3 seeds." in text
    assert "Partial: 5 of 6 cells" in text


def test_names_of_users_stay_text() -> None:
    table = Table("classes", "IoU", ["variant", "<b> a|b"], [["$x$ `y`", "[z](http://x)"]])
    assert rows_to_markdown(table).splitlines() == [
        "| variant | &lt;b> a\\|b |",
        "| --- | ---: |",
        "| \\$x\\$ \\`y\\` | [z]\\(http://x) |",
    ]
    with pytest.raises(ValueError, match="rename the folder it's"):
        Content("it's", {}, [], [], [])


def call(folder: Path, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dashboard", str(folder), *flags])
        main()


@pytest.mark.usefixtures("nobody_logged_in")
def test_an_experiment_becomes_a_file_without_network_or_login(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ablate_up_sampling"
    write_experiment(folder)
    call(folder, "--out", str(tmp_path / "file.json"))
    written = json.loads((tmp_path / "file.json").read_text())
    assert set(written) == {"workspace", "report"}
    for table in content(folder).tables:
        assert rows_to_markdown(table) in find(written["report"], "content")
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path / "nowhere", "--publish")
    assert "--publish needs a login: type `wandb login`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path / "nowhere")
    assert "holds no experiment" in capsys.readouterr().err


def test_publishing_saves_both(tmp_path: Path, wandb_server: WandbServer) -> None:
    folder = tmp_path / "ablate_up_sampling"
    write_experiment(folder)
    call(folder, "--publish")
    saved = wandb_server.variables("upsertView")
    assert [one["type"] for one in saved] == ["project-view", "runs"]
    written = json.loads((folder / "dashboard.json").read_text())
    for one, name in zip(saved, ("workspace", "report"), strict=True):
        assert (one["entityName"], one["projectName"]) == ("someone", "seglab")
        assert without_ids(json.loads(one["spec"])) == without_ids(written[name])
