"""Whether a run has the processes that it is meant for, and the command that starts them on this machine."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from training.arguments import Arguments, OptimizationArguments

TRAIN = Path(__file__).with_name("train.py")
CONFIGS = "training/configs/accelerate"


def check_processes(accelerator: Accelerator, options: OptimizationArguments, words: Sequence[str]) -> None:
    """Refuse a run whose processes are not those that were asked for.

    Args:
        accelerator: Of this run.
        options: What it asks for.
        words: The command line, to be repeated by the one that works.

    Raises:
        ValueError: When `num_processes` is another number than run, or processes don't know of each other.
    """
    running, started = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    wanted = options.num_processes or started
    if running == wanted:
        return
    uses_cpu = accelerator.device.type == "cpu"
    says = "`num_processes`" if options.num_processes else "`WORLD_SIZE`"
    raise ValueError(
        f"{says} asks for {wanted} processes, got {running}{why_fewer(running, started, uses_cpu)}; start them on this "
        f"machine by\n\n    {launch_line(wanted, options, words, uses_cpu)}\n{missing_devices(wanted, uses_cpu)}"
    )


def why_fewer(running: int, started: int, uses_cpu: bool) -> str:
    """What may have kept the other processes away."""
    if running < started:
        return f" that knows of no other, {started} times (`accelerate launch` with `use_cpu: true` does so)"
    if running == 1 and uses_cpu:
        return " (`accelerate launch --cpu` starts one, whatever its `--num_processes` says)"
    return ""


def launch_line(num_processes: int, options: OptimizationArguments, words: Sequence[str], uses_cpu: bool) -> str:
    """The command that repeats a training command with so many processes on this machine.

    Every choice is said, since `accelerate launch` warns of those that aren't.
    """
    several = num_processes > 1
    command = ["accelerate", "launch", *(["--multi_gpu"] if several else []), "--num_processes", str(num_processes)]
    command += ["--num_machines", "1", "--mixed_precision", options.mixed_precision, "--dynamo_backend", "no"]
    line = shlex.join([*command, os.path.relpath(TRAIN), *words])
    # `--multi_gpu` is what starts several processes; this makes them use the CPU, and gloo.
    return f"ACCELERATE_USE_CPU=true {line}" if several and uses_cpu else line


def missing_devices(num_processes: int, uses_cpu: bool) -> str:
    """What to do where there are fewer GPUs than processes; else nothing."""
    devices = torch.cuda.device_count()
    if uses_cpu or devices >= num_processes:
        return ""
    return (
        f"\nThis machine has {devices} GPUs: say `num_processes: {devices}`, or start the same on several machines, each "
        "with `--num_machines`, `--machine_rank`, `--main_process_ip` and `--main_process_port` of its own."
    )


def set_up_engine(accelerator: Accelerator, arguments: Arguments) -> None:
    """Tell DeepSpeed, where it runs, what Accelerate can't tell it, and refuse engines whose weights we couldn't keep.

    Raises:
        ValueError: For FSDP 1 and ZeRO stage 3, of which no whole checkpoint would come out, and for an adapter under
            FSDP.
    """
    plugin, is_fsdp = accelerator.state.deepspeed_plugin, accelerator.distributed_type == DistributedType.FSDP
    is_zero3 = plugin is not None and plugin.zero_stage == 3
    if is_zero3 or (is_fsdp and not accelerator.is_fsdp2):
        raise ValueError(
            "`accelerate launch` must leave weights whole or split them by FSDP 2, got "
            f"{'ZeRO stage 3' if is_zero3 else 'FSDP 1'}, whose checkpoints would hold a part; use {CONFIGS}/fsdp2.yaml."
        )
    if is_fsdp and arguments.lora.lora_rank:
        raise ValueError(
            f"`lora_rank` needs whole weights, got FSDP; what learns is small, so use {CONFIGS}/ddp.yaml."
        )
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = max(
            1, arguments.data.instances_per_step // accelerator.num_processes
        )
        plugin.deepspeed_config["gradient_clipping"] = arguments.optimization.max_grad_norm
