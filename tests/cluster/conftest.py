"""A Ray cluster on this machine: a head and three nodes, which it may lose."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # what tests of experiments share


class Nodes:
    """The head, which runs no cell, and workers of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self._small = {"object_store_memory": 100 * 2**20}
        self.address = str(self._cluster.address)
        self.workers: list[Any] = []

    def add(self, **resources: Any) -> Any:
        node = self._cluster.add_node(**{"num_cpus": 1, **self._small, **resources})
        self.workers.append(node)
        self._cluster.wait_for_nodes()
        return node

    def kill(self, node: Any) -> None:
        """As the power goes: nobody there is told."""
        self.workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def running(self, process: int) -> Any:
        """The node that a process belongs to."""
        raylets = {info.process.pid: node for node in self.workers for info in node.all_processes["raylet"]}
        while process > 1:
            if process in raylets:
                return raylets[process]
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])
        raise LookupError("no node of this cluster runs it")

    def shutdown(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def cluster_of_nodes() -> Iterator[Nodes]:
    before = dict(os.environ)
    # Lost nodes are noticed within seconds, not a minute.
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    os.environ |= {"RAY_health_check_initial_delay_ms": "1000", "RAY_raylet_start_wait_time_s": "120"}
    cluster = Nodes()
    yield cluster
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def nodes(cluster_of_nodes: Nodes) -> Nodes:
    """With three workers, in the place of those that an earlier test has lost."""
    while len(cluster_of_nodes.workers) < 3:
        cluster_of_nodes.add()
    return cluster_of_nodes
