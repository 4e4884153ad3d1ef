"""What the arguments of a run say of it, before anything is loaded: the part of its card that needs no measurement."""

from pathlib import Path

from training.arguments import Arguments, ModelArguments
from training.card import Plan
from training.dataset_used import is_hub_id, plan_dataset

STARTS = ("model", "clip_model", "text_model", "vision_model")


def plan_of(arguments: Arguments, command: str) -> Plan:
    """The plan of a run: what its card can say before anyone has made it."""
    options, model = arguments.optimization, arguments.model
    plan: Plan = {
        "model_name": Path(options.output_dir or "").name,
        "objective": model.objective,
        "towers": {"text": describe_start(model, "text"), "vision": describe_start(model, "vision")},
        "dataset": plan_dataset(arguments.data),
        "arguments": arguments.as_dict(),
        "command": command,
    }
    if arguments.lora.lora_rank:
        plan["is_adapter"] = True
    if options.push_to_hub:
        plan["repo_id"] = options.push_to_hub
    if bases := [name for start in STARTS if (name := getattr(model, start)) and is_hub_id(name)]:
        plan["base_models"] = bases
    if arguments.lora.lora_rank:
        plan["is_adapter"] = True
    return plan


def describe_start(model: ModelArguments, modality: str) -> str:
    """Where a tower starts from, in words."""
    config = getattr(model, f"{modality}_config")
    if config:
        return f"{config['model_type']}, from scratch"
    return getattr(model, f"{modality}_model") or model.model or model.clip_model or ""
