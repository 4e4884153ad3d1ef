"""Probes: what a model gives for a fixed input, with digests of the weights that gave it, so as to know it again."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .modeling_mxmclr import MXMCLRModel
from .processing_mxmclr import MXMCLRProcessor

RECORD_FILE, TENSORS_FILE = "probe.json", "probe.safetensors"
PACKAGES = ("mxmclr", "peft", "torch", "transformers")
TOLERANCE = 1e-5  # of embeddings and log scale in float32
SEED = b"MXM-CLR probe"
TEXTS = ("a small red chair with round legs", "two tall tables, one of dark wood")
BLOCKS = 8  # a side of the pictures
OUTPUTS = ("image_embeds", "text_embeds", "logit_scale")
# What a config says beside the function that it describes.
CONFIG_NOTES = {"_name_or_path", "architectures", "auto_map", "dtype", "objective", "objective_settings"}
CONFIG_NOTES |= {"transformers_version"}


class AdapterError(ValueError):
    """An adapter, or the base beneath it, is not what it was when the adapter was saved."""


@dataclass(frozen=True)
class Probe:
    """What is kept of an adapted model to know it again.

    Args:
        versions: Of the packages that it ran on.
        base: Digests of the base's weights, by name.
        base_config: The base's config, without notes that change no result.
        adapter: Digests of the adapter's weights, by their names in its file.
        adapter_config: The adapter's config, without notes.
        tensors: The input, and under the names in `OUTPUTS` what the model gave for it.
    """

    versions: dict[str, str]
    base: dict[str, str]
    base_config: dict[str, Any]
    adapter: dict[str, str]
    adapter_config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The fixed input."""
        return {name: rows for name, rows in self.tensors.items() if name not in OUTPUTS}

    def save(self, folder: Path) -> None:
        """Write both files; pixels are left out, since they can be drawn again."""
        tensors = dict(self.tensors)
        shape = list(tensors.pop("pixel_values").shape)
        record = {**vars(self), "tensors": fingerprint(self.tensors), "pixel_values_shape": shape}
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")
        save_file(tensors, folder / TENSORS_FILE, metadata={"record": digest(record)})

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """The probe in a folder.

        Raises:
            AdapterError: When a file is missing, broken or was changed.
        """
        record, tensors, noted = read_files(folder)
        if noted != digest(record):
            raise AdapterError(
                f"`{RECORD_FILE}` in {str(folder)!r} is not the one that `{TENSORS_FILE}` was written with: one of "
                "them was changed; take both from where the adapter came from."
            )
        digests = record.pop("tensors")
        tensors["pixel_values"] = draw_pixels(record.pop("pixel_values_shape"))
        if found := differences(digests, fingerprint(tensors)):
            raise AdapterError(
                f"The probe in {str(folder)!r} was changed, or its input comes out differently: {found}."
            )
        return cls(tensors=tensors, **record)


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The record, the tensors, and the digest of the record that lies beside the tensors."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / TENSORS_FILE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return record, tensors, (file.metadata() or {}).get("record", "")
    except FileNotFoundError as error:
        raise AdapterError(
            f"{str(folder)!r} lacks `{RECORD_FILE}` or `{TENSORS_FILE}`, so nothing shows that the adapter works as it "
            "did; `peft.PeftModel.from_pretrained` loads it unseen."
        ) from error
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"The probe in {str(folder)!r} can't be read: {error}.") from error


def digest(record: Mapping[str, Any]) -> str:
    """A digest of what JSON says."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Type, shape and digest of each tensor, by name.

    Example:
        >>> fingerprint({"scale": torch.zeros(1)})
        {'scale': 'float32[1] df3f619804a92fdb4057192dc43dd748'}
    """
    return {name: f"{kind_of(tensor)} {digest_of(tensor)}" for name, tensor in sorted(tensors.items())}


def kind_of(tensor: Tensor) -> str:
    """Type and shape in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def digest_of(tensor: Tensor) -> str:
    """The first half of a digest of its bytes."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:32]


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What differs between two fingerprints, in words; empty where they are the same.

    Example:
        >>> differences({"a": "float32[1] 00", "b": "float32[1] 00"}, {"a": "float32[1] 01", "c": "float32[1] 00"})
        "lacks 'b'; has an unknown 'c'; other values in 'a'"
    """
    shared = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    reshaped = [name for name in shared if expected[name].rpartition(" ")[0] != found[name].rpartition(" ")[0]]
    kinds = {
        "lacks": sorted(expected.keys() - found.keys()),
        "has an unknown": sorted(found.keys() - expected.keys()),
        "another type or shape of": reshaped,
        "other values in": [name for name in shared if name not in reshaped],
    }
    return "; ".join(f"{what} {some_of(names)}" for what, names in kinds.items() if names)


def some_of(names: list[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(repr, names[:count])) + more


def probe_inputs(processor: MXMCLRProcessor) -> dict[str, Tensor]:
    """Two pictures and two texts, the same on every machine: pixels drawn from a seed, tokens of the processor."""
    blank = torch.zeros(BLOCKS, BLOCKS, 3, dtype=torch.uint8).numpy()
    batch = processor(images=[[blank, blank]], text=[[*TEXTS]])
    tokens = {name: rows for name, rows in batch.items() if not name.endswith("group_ids")}
    return {**tokens, "pixel_values": draw_pixels(tokens["pixel_values"].shape)}


def draw_pixels(shape: list[int] | torch.Size) -> Tensor:
    """Pictures of coloured blocks with values in [-1, 1]; drawn by a hash, since generators change with versions."""
    count, channels, height, width = shape
    levels = torch.tensor([*hashlib.shake_256(SEED).digest(count * channels * BLOCKS**2)]) / 127.5 - 1
    blocks = levels.reshape(count, channels, BLOCKS, BLOCKS)
    rows, columns = (torch.arange(size) * BLOCKS // size for size in (height, width))
    return blocks[:, :, rows][..., columns].contiguous()


@torch.no_grad()
def probe_outputs(model: MXMCLRModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model gives for `probe_inputs`, in eval mode, in float32 on the CPU, wherever the model is."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        model = copy.deepcopy(model).cpu().float()
    tokens = {name: rows for name, rows in inputs.items() if name != "pixel_values"}
    with evaluating(model), torch.autocast("cpu", enabled=False):
        image_embeds = model.get_image_features(inputs["pixel_values"])
        text_embeds = model.get_text_features(**tokens)
        return {"image_embeds": image_embeds, "text_embeds": text_embeds, "logit_scale": model.logit_scale()}


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode, and each part then in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def largest_differences(probe: Probe, outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference from what the probe expects, by output; infinite where shapes differ or there is a NaN."""
    found = {}
    for name in OUTPUTS:
        expected, actual = probe.tensors[name], outputs[name].float()
        gap = (expected - actual).abs().max().item() if expected.shape == actual.shape else math.inf
        found[name] = math.inf if math.isnan(gap) else gap
    return found


def results_config(model: MXMCLRModel) -> dict[str, Any]:
    """The fields of a model's config that its results may depend on, as JSON under dotted names."""
    return json.loads(json.dumps(flat_fields(model.config.to_dict())))


def flat_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of nested configs under dotted names, without notes."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            fields |= {f"{name}.{inner}": each for inner, each in flat_fields(value).items()}
        elif name not in CONFIG_NOTES:
            fields[str(name)] = value
    return fields


def current_versions() -> dict[str, str]:
    """Versions of the packages that results may depend on."""
    return {name: version(name) for name in PACKAGES}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each field that changed, in words.

    Example:
        >>> changes({"r": 8, "alpha": 16}, {"r": 4, "alpha": 16})
        ['`r` is 4, was 8']
    """
    names = sorted({*before, *now})
    return [
        f"`{name}` is {now.get(name)}, was {before.get(name)}" for name in names if before.get(name) != now.get(name)
    ]
