"""A batch's gradient: at once, or by cached gradients, with any number of observations in the memory of few.

GradCache (https://huggingface.co/papers/2101.06983), for both towers: encode the batch in micro-batches and keep the
embeddings alone, score them all, keep the gradient of each, and encode every micro-batch again to hand it down. Unlike
there, the last micro-batch of a tower keeps its graph, which saves encoding it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modeling_mxmclr import MXMCLROutput

Inputs = Mapping[str, Any]

IMAGE_INPUTS = {"pixel_values"}
SCORE_INPUTS = {"image_group_ids", "text_group_ids", "soft_weight", "objective_inputs", "memory", "output_logits"}
# They exchange parameters or gradients in each pass, and ranks differ in how many passes they need.
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class MicroBatchSizes:
    """How many rows of a batch pass a tower at once; None for all of them."""

    images: int | None = None
    texts: int | None = None
    tokens: int | None = None  # of texts, padding included; at least one text

    def texts_of(self, input_ids: Tensor | None) -> int | None:
        """How many texts pass at once where they are padded like these, `(num_texts, length)`."""
        if self.tokens is None or input_ids is None:
            return self.texts
        fitting = max(1, self.tokens // max(1, input_ids.shape[1]))
        return min(fitting, self.texts or fitting)


def take_gradients(accelerator: Accelerator, model: nn.Module, batch: Inputs, sizes: MicroBatchSizes) -> MXMCLROutput:
    """Add a batch's gradient to that of the parameters, and return what was scored.

    Args:
        accelerator: What prepared the model.
        model: The prepared model.
        batch: This rank's flat batch, on any device.
        sizes: What passes a tower at once; a tower without a size takes its rows whole, and once.

    Raises:
        ValueError: When the model, or what wraps it, can't be run in micro-batches.
    """
    if sizes == MicroBatchSizes():
        output = model(**send_to_device(batch, accelerator.device, non_blocking=True))
        accelerator.backward(output.loss)
        return output
    inner = accelerator.unwrap_model(model)
    check_divisible(inner, sizes, accelerator.distributed_type)
    images, texts, rest = split_inputs(batch)
    # Past DDP, which exchanges buffers and buckets in its forward pass, while ranks differ in how many they need.
    sides = [
        Side(inner, accelerator.device, micro_batches(images, sizes.images)),
        Side(inner, accelerator.device, micro_batches(texts, sizes.texts_of(texts.get("input_ids")))),
    ]
    image_embeds, text_embeds = (side.embeds for side in sides)
    output = inner(image_embeds=image_embeds, text_embeds=text_embeds, **send_to_device(rest, accelerator.device))
    accelerator.backward(output.loss)
    after = random_state(accelerator.device)
    for side in sides:
        side.hand_down()
    set_random_state(after, accelerator.device)
    if accelerator.num_processes > 1:
        model()  # of no rows: it readies DDP to average, in the next backward pass, all that has been gathered so far
        inner.touch_parameters().backward()
    return output


class Side:
    """The rows of one modality, encoded in micro-batches.

    Args:
        model: The model itself.
        device: Where it is.
        parts: Inputs of the micro-batches, at least one.

    Attributes:
        embeds: `(num_rows, projection_dim)`, a leaf of the objective's graph.
    """

    def __init__(self, model: nn.Module, device: torch.device, parts: Sequence[Inputs]) -> None:
        self.model, self.device, self.parts = model, device, parts
        self.states: list[list[Tensor]] = []  # of the random generators, before each micro-batch
        encoded = []
        for part in parts:
            self.states.append(random_state(device))
            with torch.set_grad_enabled(part is parts[-1]):
                encoded.append(self._encode(part))
        self.kept = encoded[-1]
        self.sizes = [len(rows) for rows in encoded]
        self.embeds = torch.cat([rows.detach() for rows in encoded]).requires_grad_()

    def hand_down(self) -> None:
        """Add the gradient that `embeds` got to that of the parameters."""
        if self.embeds.grad is None or not self.kept.requires_grad:  # nothing of this side learns
            return
        *gradients, last = self.embeds.grad.split(self.sizes)
        self.kept.backward(last)
        for part, state, gradient in zip(self.parts[:-1], self.states[:-1], gradients, strict=True):
            set_random_state(state, self.device)
            self._encode(part).backward(gradient)

    def _encode(self, part: Inputs) -> Tensor:
        output = self.model(**send_to_device(part, self.device, non_blocking=True))
        return output.text_embeds if output.image_embeds is None else output.image_embeds


def split_inputs(batch: Inputs) -> tuple[Inputs, Inputs, Inputs]:
    """What of a flat batch goes to the image tower, to the text tower, and to the objective."""
    images = {name: rows for name, rows in batch.items() if name in IMAGE_INPUTS}
    rest = {name: rows for name, rows in batch.items() if name in SCORE_INPUTS}
    return images, {name: rows for name, rows in batch.items() if name not in IMAGE_INPUTS | SCORE_INPUTS}, rest


def micro_batches(inputs: Inputs, size: int | None) -> list[Inputs]:
    """A tower's inputs in runs of up to `size` rows, in order; one of no rows where there are none.

    Example:
        >>> [part["input_ids"].tolist() for part in micro_batches({"input_ids": torch.arange(5)}, 2)]
        [[0, 1], [2, 3], [4]]
    """
    runs = {name: rows.split(size or max(1, len(rows))) for name, rows in inputs.items()}
    return [dict(zip(runs, part, strict=True)) for part in zip(*runs.values(), strict=True)]


def check_divisible(model: nn.Module, sizes: MicroBatchSizes, wrapper: DistributedType) -> None:
    """Raise unless micro-batches of these sizes have the gradient of the whole batch.

    Raises:
        ValueError: For batch norms in training mode in a tower that is to see less than the batch, and for wrappers
            other than DDP.
    """
    if wrapper in SHARDING:
        raise ValueError(
            f"`micro_batch_images`, `micro_batch_texts` and `micro_batch_tokens` need one process or DDP, got "
            f"{wrapper.value}; leave them out, or launch with `--multi_gpu`."
        )
    divided = {"vision_model": sizes.images, "text_model": sizes.texts or sizes.tokens}
    for tower in (tower for tower, size in divided.items() if size is not None):
        for name, module in getattr(model, tower).named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                setting = "micro_batch_images" if tower == "vision_model" else "micro_batch_texts"
                raise ValueError(
                    f"`{setting}` would change what batch norm normalises over: `{tower}.{name}` is in training mode. "
                    "Freeze such modules by `freeze_batch_norms: true`, choose a tower with layer or group norms, or "
                    "leave the setting out."
                )


def random_state(device: torch.device) -> list[Tensor]:
    """The states of the generators that dropout draws from: the CPU's, and the device's own."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state()]


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Let the generators go on from `random_state`."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])
