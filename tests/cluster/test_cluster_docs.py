"""The files of docs/cluster.md for Kubernetes: what KubeRay reads, and that the commands in them are ours."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from documents import Reader

DOCS = Path(__file__).parents[2] / "docs"


def test_the_manifest_is_a_ray_job_whose_command_parses(tmp_path: Path) -> None:
    job: dict[str, Any] = yaml.safe_load((DOCS / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert Reader(tmp_path).wrong(words) == ""
    head, workers = job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # it runs the command, and no cell
    (container,) = workers[0]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/dev/shm" and workers[0]["template"]["spec"]["volumes"][0]["name"] == mount["name"]
    assert container["envFrom"] == head["template"]["spec"]["containers"][0]["envFrom"]


def test_the_image_has_the_extras_that_the_manifest_needs() -> None:
    dockerfile = (DOCS / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"\.\[([\w,]+)\]", dockerfile)
    assert {*extras.split(",")} == {"cluster", "s3"} and '"ray[default]"' in dockerfile
