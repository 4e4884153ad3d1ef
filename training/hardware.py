"""What a process may use of the machine."""

import os

import torch
from accelerate import Accelerator


def choose_device(cpu: bool) -> str:
    """The accelerator where there is one, unless the CPU is asked for."""
    return "cuda" if torch.cuda.is_available() and not cpu else "cpu"


def use_every_core(accelerator: Accelerator) -> None:
    """Share the cores among the processes of a CPU run: `accelerate launch` gives each one thread unless told otherwise."""
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))
