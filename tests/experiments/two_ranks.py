"""Two processes as torchrun starts them, forked from one that has imported everything: imports take seconds."""

import os
import signal
import socket
from collections.abc import Callable
from multiprocessing import get_context


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def in_two_processes(work: Callable[[], object]) -> int:
    """Does `work` in each of two; returns the status of the first that failed, or 0.

    Of a process that has only imported: CUDA and threads of autograd do not survive a fork, so tests call it in a
    script.
    """
    port = free_port()

    def rank(number: int) -> None:
        signal.alarm(300)  # none outlives a test that was killed
        of_one = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        named = {**of_one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked"}
        os.environ.update({name: str(value) for name, value in named.items()})
        work()

    both = [get_context("fork").Process(target=rank, args=(number,)) for number in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    return next((one.exitcode for one in both if one.exitcode), 0)
