"""A pool of processes on this machine that speak gloo, or NCCL where each has a GPU, started once for many tests."""

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _serve(rank: int, world_size: int, rendezvous: str, backend: str, jobs, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        backend, f"file://{rendezvous}", rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
    )
    while (job := jobs.get()) is not None:
        function, arguments = job
        try:
            results.put((rank, function(rank, *arguments), None))
        except Exception:
            results.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class GlooPool:
    """Runs `function(rank, *arguments)` on every rank and returns the answers in rank order."""

    def __init__(self, world_size: int, backend: str = "gloo") -> None:
        context = mp.get_context("spawn")
        self.jobs = [context.Queue() for _ in range(world_size)]
        self.results = context.Queue()
        folder = tempfile.mkdtemp()
        meeting = f"{folder}/rendezvous"
        arguments = [(r, world_size, meeting, backend, self.jobs[r], self.results) for r in range(world_size)]
        self.processes = [context.Process(target=_serve, args=each, daemon=True) for each in arguments]
        for process in self.processes:
            process.start()

    def run(self, function: Callable, *arguments) -> list:
        for jobs in self.jobs:
            jobs.put((function, arguments))
        answers = sorted((self.results.get(timeout=300) for _ in self.processes), key=lambda answer: answer[0])
        if errors := [error for _, _, error in answers if error]:
            raise RuntimeError("\n".join(errors))
        return [answer for _, answer, _ in answers]

    def close(self) -> None:
        for jobs in self.jobs:
            jobs.put(None)
        for process in self.processes:
            process.join(timeout=20)
