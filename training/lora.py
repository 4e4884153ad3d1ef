"""LoRA: which layers of which towers get an adapter, what is said of it, and how it is kept and loaded again."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.adapters_mxmclr import adapted_model, inject, save_probe
from modeling_mxmclr.probe_mxmclr import evaluating, probe_inputs
from training.arguments import LoraArguments

TOWERS = {"text": ("text",), "vision": ("vision",), "both": ("text", "vision")}
HEADS = ("text_projection", "visual_projection", "logit_scale")


@dataclass(frozen=True)
class Adapter:
    """An adapter in training: peft has put it into the model itself, this is how it is saved apart from the base."""

    model: PeftModel
    processor: MXMCLRProcessor

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter, and the probe by which `load_adapter` verifies it."""
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        save_probe(self.model, self.processor, folder)


def attach_adapter(model: MXMCLRModel, processor: MXMCLRProcessor, arguments: LoraArguments) -> Adapter:
    """Put an untrained adapter into a model, and freeze the rest of it.

    Heads and scale learn whole, and are kept with the adapter; so do norms with their statistics where `lora_norms` asks
    for it. Else batch norms are frozen (`set_training_mode` sees to it): an adapter that had been trained on other
    statistics than those of the base that is on disk would not work on it.

    Raises:
        ValueError: When `lora_targets` names no layer, or one that LoRA doesn't fit.
    """
    whole = [name for name in HEADS if any(True for _ in getattr(model, name).parameters())]
    if arguments.lora_norms:
        towers = TOWERS[arguments.lora_towers]
        whole += [name for tower in towers for name in reached_layers(model, tower, processor, normalises)]
    config = LoraConfig(
        r=arguments.lora_rank or 0,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout,
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        target_modules=find_targets(model, processor, arguments),
        modules_to_save=whole,
    )
    adapted = inject(model, config)
    config.base_model_name_or_path = name_of_base(model)
    config.revision = getattr(model.config, "_commit_hash", None)
    return Adapter(adapted, processor)


def name_of_base(model: MXMCLRModel) -> str:
    """Where a model was loaded from; a folder with its whole path, which can't be taken for a Hub id elsewhere."""
    name = str(model.name_or_path)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def find_targets(model: MXMCLRModel, processor: MXMCLRProcessor, arguments: LoraArguments) -> list[str]:
    """Names of the layers that get an adapter: those that fit, or those of them that `lora_targets` asks for.

    Raises:
        ValueError: When a pattern of `lora_targets` matches none of them.
    """
    towers = TOWERS[arguments.lora_towers]
    fitting = [name for tower in towers for name in reached_layers(model, tower, processor, fits)]
    if arguments.lora_targets == ["auto"]:
        return fitting
    chosen: set[str] = set()
    for pattern in arguments.lora_targets:
        matching = {name for name in fitting if re.fullmatch(rf"(.*\.)?({pattern})", name)}
        if not matching:
            raise ValueError(
                f"`lora_targets` {pattern!r} matches no layer that an adapter fits; there are, for example, "
                f"{list(summary_of(fitting))[:8]}."
            )
        chosen |= matching
    return sorted(chosen, key=fitting.index)


def reached_layers(
    model: MXMCLRModel, modality: str, processor: MXMCLRProcessor, wanted: Callable[[nn.Module], bool]
) -> list[str]:
    """Names of a tower's layers of a kind that its embedding depends on, whatever family it is of.

    They are found by running the tower. That leaves out layers that nobody reads, such as a pooler beside mean pooling,
    and weights that a parent uses without calling the layer, such as the output of `nn.MultiheadAttention`.
    """
    prefix = f"{modality}_model."
    layers = {name: each for name, each in model.named_modules() if name.startswith(prefix) and wanted(each)}
    markers: dict[str, Tensor] = {}
    hooks = [layer.register_forward_hook(add_marker(name, markers)) for name, layer in layers.items()]
    inputs = {name: rows.to(model.device) for name, rows in probe_inputs(processor).items()}
    pixels = inputs.pop("pixel_values")
    with torch.enable_grad(), evaluating(model):
        embeds = model.get_image_features(pixels) if modality == "vision" else model.get_text_features(**inputs)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(embeds.sum(), list(markers.values()), allow_unused=True)
    reached = {name for name, gradient in zip(markers, gradients, strict=True) if gradient is not None}
    return [name for name in layers if name in reached]


def fits(module: nn.Module) -> bool:
    """Whether peft adapts and merges a module: linear layers, embeddings, convolutions neither grouped nor dilated.

    A grouped convolution is small already, and the low-rank one beside it would be whole, and can't be merged.
    """
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear | nn.Embedding)


def normalises(module: nn.Module) -> bool:
    """Whether a layer only scales and shifts its features: a norm of any kind, told by the shape of what it learns."""
    weights = list(module.parameters())
    return bool(weights) and not any(module.children()) and all(weight.ndim == 1 for weight in weights)


def add_marker(name: str, markers: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds a zero to a layer's output, whose gradient tells whether anything depends on the layer."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        markers.setdefault(name, torch.zeros(1, device=output.device, requires_grad=True))
        return output + markers[name]

    return hook


def describe_adapter(adapter: Adapter) -> str:
    """What an adapter consists of, for people: modules, parameters, and their share of the base's."""
    model, config = adapted_model(adapter.model), adapter.model.active_peft_config
    learning = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    added = {name: size for name, size in learning.items() if ".lora_" in name}
    total = sum(weight.numel() for weight in model.parameters()) - sum(learning.values())
    variant = "rsLoRA" * config.use_rslora + "DoRA" * config.use_dora or "LoRA"
    modules = summary_of(sorted({name.partition(".lora_")[0] for name in added}))
    whole = "heads and scale" if set(config.modules_to_save) <= set(HEADS) else "heads, scale and norms"
    lines = [f"{variant} of rank {config.r}, alpha {config.lora_alpha:g}, on {sum(modules.values())} layers:"]
    lines += [f"  {count:>3} x {name}" for name, count in modules.items()]
    for tower in TOWERS["both"]:
        size = sum(size for name, size in added.items() if name.startswith(f"{tower}_model."))
        lines.append(f"  {size:,} parameters in the {tower} tower")
    lines.append(f"  {sum(learning.values()) - sum(added.values()):,} parameters in {whole}, which learn whole")
    lines.append(f"  together {sum(learning.values()) / total:.2%} of the base's {total:,}")
    return "\n".join(lines)


def summary_of(names: Sequence[str]) -> Counter[str]:
    """How many names there are of each form, numbers in them left open.

    Example:
        >>> dict(summary_of(["layer.0.query", "layer.1.query", "dense"]))
        {'layer.*.query': 2, 'dense': 1}
    """
    return Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
