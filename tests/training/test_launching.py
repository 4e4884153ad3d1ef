import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.references.corpus import write_corpus
from tests.references.tiny import tiny_model
from tests.training.test_train import TINY
from training.arguments import parse_arguments
from training.launching import check_processes, launch_line, set_up_engine

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "training" / "configs" / "accelerate"
TOWERS = ['--text_config={"model_type": "bert"}', '--vision_config={"model_type": "vit"}']


def accelerator_of(num_processes=1, device="cpu", kind=DistributedType.NO, is_fsdp2=False, plugin=None):
    return SimpleNamespace(
        num_processes=num_processes,
        device=torch.device(device),
        distributed_type=kind,
        is_fsdp2=is_fsdp2,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )


def arguments_of(*flags):
    return parse_arguments(["--dataset=shapes", *TOWERS, *flags], "")


def refusal(accelerator, *flags, words=("recipe.yaml", "--seed", "1")):
    with pytest.raises(ValueError, match="start them on this machine by") as refused:
        check_processes(accelerator, arguments_of(*flags).optimization, words)
    return str(refused.value)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_the_number_that_was_asked_for_runs_and_so_does_any_where_none_was():
    check_processes(accelerator_of(2), arguments_of("--num_processes=2").optimization, [])
    check_processes(accelerator_of(1), arguments_of().optimization, [])


def test_another_number_is_refused_with_the_line_for_this_machine():
    message = refusal(accelerator_of(1), "--num_processes=2")
    assert message.startswith("`num_processes` asks for 2 processes, got 1 (`accelerate launch --cpu` starts one")
    line = message.splitlines()[2].strip()
    assert line == (
        "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no training/train.py recipe.yaml --seed 1"
    )


def test_a_run_for_one_process_is_told_how_to_start_one():
    line = refusal(accelerator_of(2), "--num_processes=1").splitlines()[2].strip()
    assert line.startswith("accelerate launch --num_processes 1 --num_machines 1 ")


def test_processes_that_do_not_know_of_each_other_are_refused_though_no_number_was_asked_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refusal(accelerator_of(1))
    assert message.startswith("`WORLD_SIZE` asks for 2 processes, got 1 that knows of no other, 2 times")


def test_more_processes_than_gpus_are_told_of_other_machines(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    message = refusal(accelerator_of(4, "cuda"), "--num_processes=8", "--mixed_precision=bf16")
    line = message.splitlines()[2].strip()
    assert line.startswith("accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision bf16 ")
    assert "This machine has 4 GPUs" in message
    assert "--machine_rank" in message
    assert "This machine" not in refusal(accelerator_of(2, "cuda"), "--num_processes=4")


def test_words_of_the_command_are_quoted():
    line = launch_line(1, arguments_of().optimization, ['--text_config={"a": 1}'], True)
    assert shlex.split(line)[-1] == '--text_config={"a": 1}'


def test_engines_that_would_leave_part_of_a_checkpoint_are_refused():
    zero3 = SimpleNamespace(zero_stage=3, deepspeed_config={})
    for split in (
        accelerator_of(2, kind=DistributedType.FSDP),
        accelerator_of(2, kind=DistributedType.DEEPSPEED, plugin=zero3),
    ):
        with pytest.raises(ValueError, match=r"got (FSDP 1|ZeRO stage 3), whose .* use training/configs/accelerate"):
            set_up_engine(split, arguments_of())
    fsdp2 = accelerator_of(2, kind=DistributedType.FSDP, is_fsdp2=True)
    set_up_engine(fsdp2, arguments_of())
    adapted = parse_arguments(["--dataset=shapes", "--model=runs/a", "--lora_rank=2"], "")
    with pytest.raises(ValueError, match="`lora_rank` needs whole weights, got FSDP"):
        set_up_engine(fsdp2, adapted)


def test_deepspeed_is_told_what_it_cannot_know():
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config={})
    accelerator = accelerator_of(4, kind=DistributedType.DEEPSPEED, plugin=plugin)
    set_up_engine(accelerator, arguments_of("--instances_per_step=64", "--max_grad_norm=0.5"))
    assert plugin.deepspeed_config == {"train_micro_batch_size_per_gpu": 16, "gradient_clipping": 0.5}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_our_configs_and_they_say_their_command(path):
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType(kinds[path.stem])
    # Accelerate sets whatever stands in these two on its parsed flags, unknown names as well.
    flags = vars(launch_command_parser().parse_args(["train.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= {*flags}
    first = path.read_text().splitlines()[0]
    assert first == (
        f"# accelerate launch --config_file training/configs/accelerate/{path.name} training/train.py RECIPE.yaml"
    )


def test_the_fsdp_config_becomes_a_plugin_that_splits_layer_by_layer(monkeypatch):
    settings = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    args = launch_command_parser().parse_args(["--use_fsdp", "--num_processes", "2", "train.py"])
    for name, value in settings.items():
        setattr(args, name, value)
    args.gpu_ids, args.mixed_precision, args.dynamo_backend, args.num_machines = "all", "bf16", "no", 1
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    environment = prepare_multi_gpu_env(args)
    for name in environment:
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, environment[name])
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.cpu_ram_efficient_loading is False
    model = tiny_model("clip_text_model", "clip_vision_model")
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    split = {type(module).__name__ for module in model.modules() if policy(module)}
    assert split == {"CLIPTextEmbeddings", "CLIPVisionEmbeddings", "CLIPEncoderLayer"}


@pytest.mark.slow
def test_the_line_that_is_given_starts_two_processes_that_train(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(TINY.format(corpus=corpus) + "num_processes: 2\n")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(line):
        return subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=500,
        )  # fmt: skip

    train = os.path.relpath(ROOT / "training" / "train.py", tmp_path)
    alone = run(f"accelerate launch --cpu --num_processes 2 {train} tiny.yaml --max_steps 2")
    assert alone.returncode != 0
    (line,) = (line for line in alone.stderr.splitlines() if line.startswith("    ACCELERATE_USE_CPU"))
    both = run(line)
    assert both.returncode == 0, both.stderr
    history = [json.loads(entry) for entry in (tmp_path / "runs/tiny/history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "train/loss" in entry] == [1, 2]
