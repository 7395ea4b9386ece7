"""What one training on many GPUs takes, by arithmetic: every formula is told beside its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

IMAGES = 2975  # of the training split of Cityscapes
COLUMNS = ["crop", "batch", "steps", "epochs", "GPUs", "images/s", "efficiency", "hours", "GPU-hours", "price"]
COLUMNS += ["trainings a day"]


@dataclass(frozen=True)
class Assumed:
    """What is not known before it is measured on the GPUs themselves."""

    rate: float  # images a second of one GPU, that take `gmac` each
    gmac: float
    tflops: float  # of a GPU at the precision of the training, in 10^12 operations a second: to judge `rate` by
    bandwidth: float  # bytes a second by which a GPU exchanges gradients with the others
    latency: float  # seconds of one message between two GPUs
    hidden: float  # share of the exchange that happens during the backward pass
    kept: float  # share of the time that is left by slow processes, data, validation and checkpoints
    price: float  # of an hour of a GPU


@dataclass(frozen=True)
class Network:
    """Of the network that is trained, and of the part of an image that it is trained on."""

    name: str
    crop: int
    gmac: float  # multiply-adds of one image forwards, in 10^9
    parameters: int


@dataclass(frozen=True)
class Plan:
    """One training of so many `steps` with `batch` images each, on `gpus`. Times in seconds."""

    network: Network
    gpus: int
    batch: int
    steps: int
    assumed: Assumed

    @property
    def rate(self) -> float:
        """Images a second of one GPU: an image of another crop takes as much longer as it has more multiply-adds."""
        return self.assumed.rate * self.assumed.gmac / self.network.gmac

    @property
    def utilisation(self) -> float:
        """The share of what the GPU can do: forwards is 2 operations a multiply-add, backwards twice that."""
        return 6e9 * self.network.gmac * self.rate / (1e12 * self.assumed.tflops)

    @property
    def compute(self) -> float:
        """Of a step: each GPU has batch / gpus images, at least one."""
        return self.batch / self.gpus / self.rate

    @property
    def exchange(self) -> float:
        """Of the gradients, in 32 bits, by a ring: 2 (n - 1) messages, each of bytes / n."""
        n = self.gpus
        return 2 * (n - 1) * (4 * self.network.parameters / n / self.assumed.bandwidth + self.assumed.latency)

    @property
    def step(self) -> float:
        return (self.compute + (1 - self.assumed.hidden) * self.exchange) / self.assumed.kept

    @property
    def hours(self) -> float:
        return self.steps * self.step / 3600

    @property
    def efficiency(self) -> float:
        return self.compute / self.step


def plans(network: Network, gpus: int, batches: Sequence[int], steps: Sequence[int], assumed: Assumed) -> list[Plan]:
    """For each batch and length: on one GPU, on eight, and on as many as have an image each."""
    counts = {batch: sorted({n for n in (1, 8, min(batch, gpus)) if batch % n == 0 and n <= gpus}) for batch in batches}
    return [Plan(network, n, batch, length, assumed) for length in steps for batch in batches for n in counts[batch]]


def told(of_all: Sequence[Plan], gpus: int) -> str:
    """Markdown: a row a plan, and the formulas with the numbers of the last row."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---:|' * len(COLUMNS)}"]
    for plan in of_all:
        epochs, at_once = plan.batch * plan.steps / IMAGES, gpus // plan.gpus
        cells = [str(plan.network.crop), str(plan.batch), f"{plan.steps:,}", f"{epochs:,.0f}", str(plan.gpus)]
        cells += [f"{plan.batch / plan.step:.1f}", f"{plan.efficiency:.0%}", f"{plan.hours:.1f}"]
        cells += [f"{plan.hours * plan.gpus:,.0f}", f"{plan.hours * plan.gpus * plan.assumed.price:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {at_once * 24 / plan.hours:.1f} |")
    net = of_all[-1].network
    about = f"{net.name} of {net.parameters:,} parameters on Cityscapes ({IMAGES:,} training images). Trainings a day:"
    about += f" on all {gpus} GPUs, as many at once as fit. With the numbers of the last row:"
    return "\n".join(
        [*lines, "", about, "", *(f"- {name} = {how}" for name, how in formulas(of_all[-1], gpus).items())]
    )


def formulas(plan: Plan, gpus: int) -> dict[str, str]:
    """What each number is, in letters, in numbers, and its value."""
    of, net, n, day = plan.assumed, plan.network, plan.gpus, 24 / plan.hours
    rate, compute, exchange, step = f"{plan.rate:.1f}", 1000 * plan.compute, 1000 * plan.exchange, 1000 * plan.step
    size, hours, costs = 4 * net.parameters, n * plan.hours, n * plan.hours * of.price
    return {
        "images/s of a GPU r": f"assumed x multiply-adds = {of.rate:g} x {of.gmac:.1f}e9 / {net.gmac:.1f}e9 = {rate}",
        "its share of what the GPU can do": f"6 x {net.gmac:.1f}e9 x r / {of.tflops:g}e12 = {plan.utilisation:.0%}",
        "compute of a step c": f"batch / n / r = {plan.batch} / {n} / {rate} = {compute:.1f} ms",
        "gradients g": f"4 bytes x parameters = {size:,} bytes",
        "their exchange x": f"2 (n - 1) (g / n / bandwidth + latency) = "
        f"2 x {n - 1} x ({size:,} / {n} / {of.bandwidth:.3g} + {of.latency:g}) = {exchange:.1f} ms",
        "step t": f"(c + (1 - hidden) x) / kept = "
        f"({compute:.1f} + {1 - of.hidden:.2g} x {exchange:.1f}) / {of.kept:g} = {step:.1f} ms",
        "efficiency": f"c / t = {plan.efficiency:.0%}",
        "hours": f"steps x t / 3600 = {plan.steps:,} x {plan.step:.4f} / 3600 = {plan.hours:.2f}",
        "GPU-hours": f"n x hours = {hours:.1f}; price = GPU-hours x {of.price:g} = {costs:,.0f}",
        "trainings a day": f"floor({gpus} / n) x 24 / hours = {gpus // n} x {day:.1f} = {gpus // n * day:.1f}",
    }
