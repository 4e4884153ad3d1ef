"""Adapters of a checkpoint (peft), saved with a probe and loaded only where they give what they gave when saved.

Needs peft. `peft.PeftModel.from_pretrained` and `AutoModel.from_pretrained` load the same folders, unverified.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from .modeling_mxmclr import MXMCLRModel
from .probe_mxmclr import (
    RECORD_FILE,
    TENSORS_FILE,
    TOLERANCE,
    AdapterError,
    Probe,
    changes,
    current_versions,
    differences,
    fingerprint,
    largest_differences,
    probe_inputs,
    probe_outputs,
    results_config,
    some_of,
)
from .processing_mxmclr import MXMCLRProcessor

CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# What an adapter's config says beside what the adapter is: where its base lies, and how it was last opened.
CONFIG_NOTES = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
ADAPTER_PART = re.compile(r"\.(modules_to_save|lora_\w+)\.")
WRAPPER_PART = re.compile(r"\.(base_layer|original_module)(?=\.)")


def save_probe(model: PeftModel, processor: MXMCLRProcessor, folder: str | os.PathLike[str]) -> None:
    """Write `probe.json` and `probe.safetensors` beside an adapter, by which `load_adapter` knows it again.

    Args:
        model: The model with the adapter active, just saved by its `save_pretrained`.
        processor: The model's processor.
        folder: The folder that it was saved to.

    Raises:
        AdapterError: When the folder doesn't hold the adapter that the model carries, or that gives no finite numbers.
    """
    config, tensors = read_adapter(folder)
    carried = fingerprint(adapter_state(model, str(model.active_adapter)))
    if found := differences(carried, fingerprint(tensors)):
        raise AdapterError(
            f"{os.fspath(folder)!r} holds another adapter than the model; save that there first: {found}."
        )
    inner = adapted_model(model)
    inputs = probe_inputs(processor)
    outputs = probe_outputs(inner, inputs)
    if broken := [name for name, rows in outputs.items() if not rows.isfinite().all()]:
        raise AdapterError(f"The model gives {broken} that are not finite; this adapter is not worth keeping.")
    Probe(
        versions=current_versions(),
        base=fingerprint(base_state(inner)),
        base_config=results_config(inner),
        adapter=carried,
        adapter_config=config_without_notes(config),
        tensors={**inputs, **outputs},
    ).save(Path(folder))


def load_adapter(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str] | MXMCLRModel | PeftModel | None = None,
    adapter_name: str = "default",
    revision: str | None = None,
) -> PeftModel:
    """A base with an adapter, in eval mode, once it is seen to give what it gave when the adapter was saved.

    Args:
        source: Folder or Hub id of the adapter, with its probe.
        base: Folder or Hub id of the base; or the model, which then carries the adapter; or a model that carries
            others already, which then has this one active. None takes what the adapter's config names.
        adapter_name: What `set_adapter` will call it.
        revision: Branch, tag or commit of the adapter.

    Raises:
        AdapterError: When adapter, base, probe or results are not what they were; a model passed is then left as it was.
        ValueError: When the base already carries an adapter of that name.
    """
    folder = fetch_adapter(source, revision)
    probe = Probe.load(folder)
    config, tensors = read_adapter(folder)
    check_adapter(probe, config, tensors, str(source))
    model = base if isinstance(base, MXMCLRModel | PeftModel) else load_base(base, config)
    check_base(probe, model, adapter_name)
    return attach(probe, model, PeftConfig.from_pretrained(str(folder)), tensors, adapter_name)


def adapted_model(model: PeftModel) -> MXMCLRModel:
    """The model that peft has put adapters into."""
    return cast(MXMCLRModel, model.get_base_model())


def holds_adapter(source: str | os.PathLike[str]) -> bool:
    """Whether a folder or Hub id holds an adapter rather than a whole checkpoint."""
    return find_file(source, CONFIG_FILE, None) is not None


def fetch_adapter(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder with an adapter's files, from the Hub where need be."""
    if (Path(source) / PICKLE_FILE).exists():
        raise AdapterError(
            f"{os.fspath(source)!r} holds `{PICKLE_FILE}`, a pickle, which could run anything when it is read; delete "
            f"it, or convert it to `{WEIGHTS_FILE}` where you trust it."
        )
    found = {
        name: find_file(source, name, revision) for name in (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE, TENSORS_FILE)
    }
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if found[name] is None:
            raise AdapterError(f"{os.fspath(source)!r} lacks `{name}`; weights are read as safetensors only.")
    return Path(found[CONFIG_FILE] or "").parent


def find_file(source: str | os.PathLike[str], name: str, revision: str | None) -> str | None:
    """Path of a file of a folder or Hub repository, None where that has none of this name."""
    return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights in a folder.

    Raises:
        AdapterError: When one of them is missing, or can't be read, or the weights hold NaN or infinity.
    """
    try:
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise AdapterError(
            f"{os.fspath(folder)!r} holds no adapter: {error}; the model's `save_pretrained` writes one."
        ) from error
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"The adapter in {os.fspath(folder)!r} can't be read: {error}.") from error
    if broken := sorted(name for name, weights in tensors.items() if not weights.isfinite().all()):
        raise AdapterError(f"The adapter in {os.fspath(folder)!r} holds NaN or infinity in {some_of(broken)}.")
    return config, tensors


def config_without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's config as it defines the adapter; lists that are sets to peft in order."""
    fields = {name: value for name, value in config.items() if name not in CONFIG_NOTES}
    return {name: sorted(value) if isinstance(value, list) else value for name, value in fields.items()}


def check_adapter(probe: Probe, config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless an adapter's config and weights are those that its probe was written with."""
    if found := changes(probe.adapter_config, config_without_notes(config)):
        raise AdapterError(
            f"`{CONFIG_FILE}` of {source!r} was changed since the probe was written: {'; '.join(found)}."
        )
    if differing := differences(probe.adapter, fingerprint(tensors)):
        raise AdapterError(f"`{WEIGHTS_FILE}` of {source!r} was changed since the probe was written: it {differing}.")


def load_base(base: str | os.PathLike[str] | None, config: Mapping[str, Any]) -> MXMCLRModel:
    """The base of an adapter, from where a caller says or else its config does."""
    revision = None if base else config.get("revision")
    name = os.fspath(base or config.get("base_model_name_or_path") or "")
    if not name or (os.path.isabs(name) and not os.path.isdir(name)):
        raise AdapterError(f"The adapter's base {name!r} is not here; say by `base` where it is.")
    return MXMCLRModel.from_pretrained(name, revision=revision or "main", use_safetensors=True)


def check_base(probe: Probe, model: MXMCLRModel | PeftModel, adapter_name: str) -> None:
    """Raise unless a model is the base that a probe was written on, and free to take an adapter of this name."""
    if isinstance(model, PeftModel) and adapter_name in model.peft_config:
        raise ValueError(f"`base` already carries an adapter {adapter_name!r}; choose another `adapter_name`.")
    if isinstance(model, MXMCLRModel) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("`base` already carries an adapter; pass the `PeftModel` around it.")
    inner = adapted_model(model) if isinstance(model, PeftModel) else model
    if found := differences(probe.base, fingerprint(base_state(inner))):
        versions = "; ".join(changes(probe.versions, current_versions()))
        raise AdapterError(
            f"`base` is not the model that this adapter was trained on: it {found}. "
            f"Versions since then: {versions or 'unchanged'}."
        )


def base_state(model: MXMCLRModel) -> dict[str, Tensor]:
    """The weights of a model without its adapters, by the names that they have without them."""
    state = model.state_dict().items()
    return {WRAPPER_PART.sub("", name): rows for name, rows in state if not ADAPTER_PART.search(f".{name}")}


def adapter_state(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The weights of an adapter, by the names that they have in its file."""
    return get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)


def attach(
    probe: Probe, model: MXMCLRModel | PeftModel, config: PeftConfig, tensors: dict[str, Tensor], adapter_name: str
) -> PeftModel:
    """A model with an adapter, verified; without it again where that fails."""
    config.inference_mode = True
    with undone_by_errors(model, adapter_name) as adapted:
        adapted.append(inject(model, config, adapter_name))
        fill(probe, adapted[0], tensors, adapter_name)
    return adapted[0].eval()


@contextmanager
def undone_by_errors(model: MXMCLRModel | PeftModel, adapter_name: str) -> Iterator[list[PeftModel]]:
    """A context that takes an adapter out again when it fails, since peft changes the model itself."""
    adapted: list[PeftModel] = []
    active = str(model.active_adapter) if isinstance(model, PeftModel) else None
    learning = {name: weight.requires_grad for name, weight in model.named_parameters()}
    try:
        yield adapted
    except Exception as error:
        if adapted:
            take_out(adapted[0], adapter_name, active)
        for name, weight in model.named_parameters():
            weight.requires_grad = learning[name]
        raise error if isinstance(error, AdapterError) else AdapterError(f"peft can't load it: {error!r}.") from error


def take_out(model: PeftModel, adapter_name: str, active: str | None) -> None:
    """Undo `inject`, and let another adapter be active where there was one."""
    if active is not None:
        model.set_adapter(active)
        model.delete_adapter(adapter_name)
        return
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):  # `unload` keeps the trained copy of a head, not the base's own
            module.modules_to_save[adapter_name].load_state_dict(module.original_module.state_dict())
    model.unload()


def inject(model: MXMCLRModel | PeftModel, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """A model with an untrained adapter; peft changes the model itself."""
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
    else:
        with warnings.catch_warnings():
            # peft reads a property that transformers has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = PeftModel(model, config, adapter_name)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(layer := module.get_base_layer(), nn.Conv2d):
            # MobileNets pad by reading these of each convolution, and peft's layer doesn't have them.
            vars(module).update({name: getattr(layer, name) for name in ("kernel_size", "stride", "dilation")})
    return model


def fill(probe: Probe, model: PeftModel, tensors: dict[str, Tensor], adapter_name: str) -> None:
    """Give an adapter its weights, and raise unless they fit and the model gives what the probe expects."""
    model.set_adapter(adapter_name, inference_mode=True)
    set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)
    if found := differences(probe.adapter, fingerprint(adapter_state(model, adapter_name))):
        raise AdapterError(f"The model made of the adapter's config doesn't fit its weights: it {found}.")
    verify_outputs(probe, adapted_model(model))


def verify_outputs(probe: Probe, model: MXMCLRModel) -> float:
    """The largest difference between what a model gives for a probe's input and what the probe expects.

    Raises:
        AdapterError: When it is more than `TOLERANCE`.
    """
    gaps = largest_differences(probe, probe_outputs(model, probe.inputs))
    largest = max(gaps.values())
    if largest > TOLERANCE:
        stated = ", ".join(f"{name} differ by up to {gap:.1e}" for name, gap in gaps.items() if gap > TOLERANCE)
        causes = changes(probe.base_config, results_config(model)) + changes(probe.versions, current_versions())
        raise AdapterError(
            f"The model gives other results than when the probe was written: {stated}, allowed are {TOLERANCE:.0e}. "
            f"All weights are the same; what else changed: {'; '.join(causes) or 'nothing that the probe knows of'}."
        )
    return largest
