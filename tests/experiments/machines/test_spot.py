"""A grid on simulated machines is run by the real scheduler: nothing is lost but what the machines lose."""

import heapq
import math
from dataclasses import replace

import pytest

from experiments.grids.launchers.on_ray import RETRIES
from experiments.grids.launchers.simulated import Machines
from experiments.machines.spot import SEEDS, best_interval, durations, simulate, told

SAFE = Machines(7, startup=0.0, saving=0.0, interval=math.inf)


def list_scheduling(seconds: list[float], workers: int) -> float:
    """The hours of a list that is worked off by so many: seed after seed, the longest first, as a grid is begun."""
    free = [0.0] * workers
    for number in sorted(range(len(seconds)), key=lambda n: (n % SEEDS, -seconds[n])):
        heapq.heapreplace(free, free[0] + seconds[number])
    return max(free) / 3600


@pytest.mark.parametrize("queued", [0, 5, 1000])
def test_without_losses_it_is_list_scheduling(queued: int) -> None:
    seconds = durations(60, 2.0)
    ran = simulate(replace(SAFE, queued=queued), seconds)
    assert ran.makespan == pytest.approx(list_scheduling(seconds, 7))
    assert ran.spent.work == pytest.approx(sum(seconds)) and ran.spent.redone == ran.spent.overhead == 0
    assert ran.failed == ran.spent.losses == 0 and {*ran.times.values()} == {1}


@pytest.mark.parametrize("interval", [60.0, 600.0, 3600.0])
def test_every_cell_is_done_once_and_no_loss_takes_more_than_an_interval(interval: float) -> None:
    seconds = durations(60, 2.0)
    machines = Machines(7, losses=0.5, interval=interval, startup=30.0, saving=2.0)
    ran = simulate(machines, seconds)
    assert len(ran.times) == 60 and {*ran.times.values()} == {1} and ran.failed == 0
    assert ran.spent.losses > 20
    assert 0 < ran.spent.redone <= ran.spent.losses * interval
    assert ran.spent.work == pytest.approx(sum(seconds))
    assert ran.spent.machines == pytest.approx(ran.spent.work + ran.spent.redone + ran.spent.overhead)
    assert ran.makespan * 3600 * 7 > ran.spent.machines  # a machine has one cell at a time


def test_losses_come_at_their_rate() -> None:
    """Poisson: of one machine-hour so many; three standard deviations."""
    ran = simulate(Machines(20, losses=0.2, interval=60.0, startup=0.0, saving=0.0), durations(200, 2.0))
    expected = 0.2 * ran.spent.machines / 3600
    assert abs(ran.spent.losses - expected) < 3 * math.sqrt(expected)


def test_a_cell_that_never_gets_to_its_first_checkpoint_fails() -> None:
    """The launcher gives up after `RETRIES`, the scheduler starts it once more."""
    ran = simulate(Machines(2, losses=60.0, interval=7200.0, startup=0.0, saving=0.0), [36000.0, 36000.0])
    assert ran.failed == 2 and {*ran.times.values()} == {0}
    assert ran.spent.losses == 2 * 2 * (RETRIES + 1) and ran.spent.work == 0


def test_losses_are_those_of_the_seed() -> None:
    seconds, machines = durations(30, 1.0), Machines(5, losses=0.5)
    first, same, other = (simulate(replace(machines, seed=seed), seconds) for seed in (0, 0, 1))
    assert first == same and first.makespan != other.makespan


def test_a_lost_cell_waits_behind_those_that_are_queued() -> None:
    seconds, machines = durations(100, 2.0), Machines(10, losses=0.2)
    behind, next_one = (simulate(replace(machines, queued=n), seconds) for n in (1000, 0))
    assert behind.spent.losses > 10 and next_one.makespan < behind.makespan


def test_what_is_told() -> None:
    text = told(Machines(5, losses=0.5, saving=5.0), durations(20, 1.0), [1.0], 1.0, 3.0, 1)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    kinds = ["| 10 min, none lost, on demand", "| 1 min", "| 10 min, none queued"]
    assert [row.split(" | ")[0] for row in rows[1:]] == kinds
    assert "sqrt(2 x 5 s x 3600 s / 0.5) = 4.5 min" in text
    assert best_interval(5.0, 0.0) == math.inf
