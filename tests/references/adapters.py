"""An adapter on a tiny base, saved with its probe: what tests of loading start from."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.adapters_mxmclr import adapted_model, inject, save_probe
from tests.references.tiny import tiny_batch, tiny_model, tiny_processor

HEADS = ["text_projection", "visual_projection", "logit_scale"]


def save_base(folder: Path, text: str = "bert", vision: str = "resnet", seed: int = 0, **fields) -> Path:
    """A checkpoint with its processor; its batch norms have statistics that fit its weights, as after training."""
    model = tiny_model(text, vision, seed, **fields).train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.get_image_features(tiny_batch()["pixel_values"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Move all that learns, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


def make_adapter(base: Path, targets: str = r".*\.(query|value|convolution)", seed: int = 1, **config) -> PeftModel:
    """A base with an adapter that has learned something."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "modules_to_save": HEADS, **config}
    model = inject(MXMCLRModel.from_pretrained(base), LoraConfig(**settings))
    model.peft_config["default"].base_model_name_or_path = str(base)
    disturb(model, seed)
    return model.eval()


def save_adapter(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder, save_embedding_layers=False)
    save_probe(model, tiny_processor(), folder)
    return folder


def embeddings(model: MXMCLRModel | PeftModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inner = adapted_model(model) if isinstance(model, PeftModel) else model
    with torch.no_grad():
        output = inner.eval()(**batch, return_loss=False)
    return {name: output[name] for name in ("image_embeds", "text_embeds", "logit_scale")}
