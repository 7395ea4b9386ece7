"""Many images on a Ray cluster: each worker has the network, and predicts the images that Ray Data gives it.

An image that was given to a node which is lost is predicted again elsewhere. Its files are then written a second time,
the same as the first; what is counted of it is told once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from experiments.prediction.job import Ended, Job, Wanted
from experiments.prediction.segmenter import Segmenter
from experiments.prediction.sources import Item
from experiments.shell.cluster import connect
from experiments.shell.ending import CannotWriteError, NoSpaceError

BLOCKS = 2000  # parts of the list that are given out and told of as a whole


class Worker:
    """Predicts images in a process of a node; `network` are the checkpoints and arguments of a `Segmenter`."""

    def __init__(self, network: tuple[Sequence[Path], Mapping[str, Any]], out: Path, wanted: Wanted, also: Any) -> None:
        checkpoints, arguments = network
        segmenter = Segmenter.from_checkpoint(*checkpoints, **arguments, say=_nothing)
        self.job = Job(segmenter, out, wanted, _nothing, also)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        return {"ended": [json.dumps(self._one(str(item))) for item in batch["item"]]}

    def _one(self, item: str) -> dict[str, Any]:
        fields = json.loads(item)
        try:
            _, ended = self.job.attempt(_item(fields))
            return {"item": fields, "ended": ended}
        except (CannotWriteError, NoSpaceError) as error:  # which ends the whole
            return {"item": fields, "stop": type(error).__name__, "said": str(error)}


def on_ray(
    network: tuple[Sequence[Path], Mapping[str, Any]],
    out: Path,
    wanted: Wanted,
    also: Any,
    *,
    address: str | None,
    jobs: int | None,
    gpus: float | None,
) -> Callable[[Sequence[Item]], Iterator[Ended]]:
    """What `Job.run` takes as `every`: the images predicted by `jobs` workers of a cluster, as they end.

    Of each worker: one CPU core, and `gpus` of one where the cluster has some. All nodes see `out` and the checkpoints.
    Raises ValueError without the package, or where no cluster answers.
    """
    ray = connect(address, send_code=address is not None)
    has = ray.cluster_resources()
    share = (1.0 if has.get("GPU") else 0.0) if gpus is None else gpus
    most = int(min(has.get("CPU", 1), has.get("GPU", 0) / share if share else has.get("CPU", 1)))
    made_of = (network, out.absolute(), wanted, also)
    return partial(_every, made_of=made_of, workers=max(jobs or most, 1), gpus=share)


def _every(items: Sequence[Item], *, made_of: tuple[Any, ...], workers: int, gpus: float) -> Iterator[Ended]:
    import ray

    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"item": json.dumps(asdict(item) | {"path": str(item.path)})} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=made_of,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        num_gpus=gpus or None,
        num_cpus=None if gpus else 1,
    )
    for row in data.iter_rows():
        told = json.loads(row["ended"])
        if "stop" in told:
            raise {"NoSpaceError": NoSpaceError}.get(told["stop"], CannotWriteError)(told["said"])
        yield _item(told["item"]), told["ended"]


def _item(fields: Mapping[str, Any]) -> Item:
    return Item(Path(fields["path"]), fields["name"], fields["url"], (fields["stamp"][0], fields["stamp"][1]))


def _nothing(line: str) -> None:
    """What a worker says is told by the rows it gives."""
