import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from modeling_mxmclr import MXMCLRModel, adapters_mxmclr
from modeling_mxmclr.adapters_mxmclr import adapted_model, base_state, holds_adapter, load_adapter, save_probe
from modeling_mxmclr.probe_mxmclr import AdapterError, digest
from tests.references.adapters import disturb, embeddings, make_adapter, save_adapter, save_base
from tests.references.tiny import tiny_batch, tiny_processor

QUERY = "base_model.model.text_model.encoder.layer.0.attention.self.query.lora_A.weight"
CONVOLUTION = "base_model.model.vision_model.embedder.embedder.convolution.lora_B.weight"
IMAGE_HEAD, SCALE = "base_model.model.visual_projection.weight", "base_model.model.logit_scale.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a base and an adapter, and the embeddings of both together."""
    folder = tmp_path_factory.mktemp("adapters")
    model = make_adapter(save_base(folder / "base"))
    save_adapter(model, folder / "adapter")
    return folder, embeddings(model, tiny_batch())


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy of the adapter's folder to spoil, and the base's folder."""
    folder, _ = saved
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter", folder / "base"


def edit_config(**fields):
    def spoil(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def edit_weights(change, file="adapter_model.safetensors"):
    def spoil(folder):
        with safe_open(folder / file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata=metadata)

    return spoil


def edit_record(folder, change):
    """Change the probe's record together with its digest, as somebody would who covers it up."""
    record = json.loads((folder / "probe.json").read_text())
    change(record)
    (folder / "probe.json").write_text(json.dumps(record))
    save_file(
        load_file(folder / "probe.safetensors"), folder / "probe.safetensors", metadata={"record": digest(record)}
    )


def reinitialise(tensors):
    nn.init.kaiming_uniform_(tensors[QUERY])


def rename(tensors):
    tensors[QUERY.replace("query", "q_proj")] = tensors.pop(QUERY)


def alter_slightly(tensors):
    tensors[CONVOLUTION][0, 0] += 1e-4


def put_nan(tensors):
    tensors[CONVOLUTION][0, 0] = torch.nan


def shift_scale(tensors):
    tensors[SCALE] += 0.5


def reshape(tensors):
    tensors[QUERY] = tensors[QUERY][:2].clone()


def shift_expected(tensors):
    tensors["image_embeds"][0, 0] += 0.1


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut_short(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_in_its_place(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def pickle_beside_it(folder):
    torch.save({}, folder / "adapter_model.bin")


def edit_record_alone(folder):
    path = folder / "probe.json"
    path.write_text(path.read_text().replace("float32[4, 32]", "float32[8, 32]"))


def drop_key_and_say_so_nowhere(folder):
    edit_weights(lambda tensors: tensors.pop(QUERY))(folder)
    edit_record(folder, lambda record: record["adapter"].pop(QUERY))


def raise_alpha_and_note_it(folder):
    edit_config(lora_alpha=32)(folder)
    edit_record(folder, lambda record: record["adapter_config"].update(lora_alpha=32))


CHANGED = "`adapter_config.json` .* was changed since the probe was written: "
WEIGHTS = "`adapter_model.safetensors` .* was changed since the probe was written: it "
SPOILINGS = {
    "a dropped key": (edit_weights(lambda tensors: tensors.pop(QUERY)), f"{WEIGHTS}lacks '{QUERY}'"),
    "a renamed key": (edit_weights(rename), f"{WEIGHTS}lacks .*query.*; has an unknown .*q_proj"),
    "a re-initialised key": (edit_weights(reinitialise), f"{WEIGHTS}other values in '{QUERY}'"),
    "a slightly altered key": (edit_weights(alter_slightly), f"{WEIGHTS}other values in '{CONVOLUTION}'"),
    "a key of another shape": (edit_weights(reshape), f"{WEIGHTS}another type or shape of '{QUERY}'"),
    "a missing head": (edit_weights(lambda tensors: tensors.pop(IMAGE_HEAD)), f"{WEIGHTS}lacks '{IMAGE_HEAD}'"),
    "a changed scale": (edit_weights(shift_scale), f"{WEIGHTS}other values in '{SCALE}'"),
    "weights that are NaN": (edit_weights(put_nan), f"holds NaN or infinity in '{CONVOLUTION}'"),
    "a file cut short": (cut_short, "can't be read"),
    "another rank": (edit_config(r=2), f"{CHANGED}`r` is 2, was 4"),
    "another alpha": (edit_config(lora_alpha=16), f"{CHANGED}`lora_alpha` is 16, was 8"),
    "rsLoRA switched on": (edit_config(use_rslora=True), f"{CHANGED}`use_rslora` is True, was False"),
    "DoRA switched on": (edit_config(use_dora=True), f"{CHANGED}`use_dora` is True, was False"),
    "other targets": (edit_config(target_modules=r".*\.query"), f"{CHANGED}`target_modules` is"),
    "a head left out of the config": (edit_config(modules_to_save=["logit_scale"]), f"{CHANGED}`modules_to_save` is"),
    "another kind of adapter": (edit_config(peft_type="IA3"), f"{CHANGED}`peft_type` is IA3, was LORA"),
    "no record": (remove("probe.json"), "lacks `probe.json` or"),
    "no expected embeddings": (remove("probe.safetensors"), "lacks `probe.json` or"),
    "another record": (edit_record_alone, "one of them was changed"),
    "other expected embeddings": (edit_weights(shift_expected, "probe.safetensors"), "other values in 'image_embeds'"),
    "no config": (remove("adapter_config.json"), "lacks `adapter_config.json`"),
    "no weights": (remove("adapter_model.safetensors"), "lacks `adapter_model.safetensors`"),
    "a pickle for weights": (pickle_in_its_place, "`adapter_model.bin`, a pickle"),
    "a pickle beside the weights": (pickle_beside_it, "`adapter_model.bin`, a pickle"),
    "a dropped key, and a record that agrees": (
        drop_key_and_say_so_nowhere,
        "peft can't load|doesn't fit its weights",
    ),
    "another alpha, and a record that agrees": (raise_alpha_and_note_it, "embeds differ by up to"),
}


@pytest.mark.parametrize("how", SPOILINGS)
def test_a_spoiled_adapter_is_refused_and_the_base_is_left_as_it_was(how, adapter):
    folder, base_folder = adapter
    spoil, message = SPOILINGS[how]
    spoil(folder)
    base = MXMCLRModel.from_pretrained(base_folder)
    before = {name: rows.clone() for name, rows in base.state_dict().items()}
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder, base)
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)
    assert all(weight.requires_grad for weight in base.parameters())


def drift(model):
    next(buffer for name, buffer in model.named_buffers() if "running_mean" in name).add_(0.01)


def scale_query(model):
    model.text_model.encoder.layer[0].attention.self.query.weight.data *= 1.01


def switch_pooling(model):
    model.config.text_pooling = "cls"


BASES = {
    "one weight": (scale_query, "other values in 'text_model.encoder.layer.0.attention.self.query.weight'"),
    "the statistics of batch norms": (drift, "other values in '.*running_mean'"),
    "all weights": (lambda model: disturb(model), "other values in .* and [0-9]+ more"),
    "precision": (lambda model: model.bfloat16(), "another type or shape of"),
    "pooling": (switch_pooling, "text_embeds differ by up to .*`text_pooling` is cls, was auto"),
}


@pytest.mark.parametrize("what", BASES)
def test_a_base_that_differs_is_refused(what, saved):
    change, message = BASES[what]
    base = MXMCLRModel.from_pretrained(saved[0] / "base")
    change(base)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved[0] / "adapter", base)


@pytest.mark.parametrize(("text", "vision"), [("bert", "vit"), ("distilbert", "resnet")])
def test_a_base_of_another_architecture_is_refused(text, vision, saved, tmp_path):
    with pytest.raises(AdapterError, match=r"not the model that this adapter was trained on: it lacks .* unknown"):
        load_adapter(saved[0] / "adapter", save_base(tmp_path, text, vision))


def test_a_library_that_computes_otherwise_is_told_by_its_version(saved, monkeypatch):
    normalise = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda module, rows: normalise(module, rows).half().float())
    monkeypatch.setattr(adapters_mxmclr, "current_versions", lambda: {"torch": "9.9"})
    with pytest.raises(AdapterError, match=r"text_embeds differ by up to \d.*`torch` is 9.9, was 2"):
        load_adapter(saved[0] / "adapter")


def test_a_library_that_computes_the_same_is_fine(saved, monkeypatch):
    monkeypatch.setattr(adapters_mxmclr, "current_versions", lambda: {"torch": "9.9"})
    assert load_adapter(saved[0] / "adapter")


def test_a_base_that_has_gone_is_asked_for(adapter):
    folder, base = adapter
    edit_config(base_model_name_or_path="/nowhere/base")(folder)
    with pytest.raises(AdapterError, match="base '/nowhere/base' is not here; say by `base`"):
        load_adapter(folder)
    assert load_adapter(folder, base).active_adapter == "default"


def test_loading_gives_the_embeddings_that_were_saved(saved):
    folder, expected = saved
    model = load_adapter(folder / "adapter")
    torch.testing.assert_close(embeddings(model, tiny_batch()), expected, rtol=0, atol=1e-6)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_libraries_load_the_folder_by_themselves(saved):
    folder, expected = saved
    plain = PeftModel.from_pretrained(MXMCLRModel.from_pretrained(folder / "base"), folder / "adapter")
    auto = AutoModel.from_pretrained(folder / "adapter")
    assert isinstance(auto, MXMCLRModel)
    for model in (plain, auto):
        torch.testing.assert_close(embeddings(model, tiny_batch()), expected, rtol=0, atol=1e-6)


def test_adapters_of_one_base_are_switched_at_run_time(saved, tmp_path):
    folder, first = saved
    other = make_adapter(folder / "base", targets=r"text_model.*\.(key|dense)", seed=5, r=2, use_rslora=True)
    save_adapter(other, tmp_path / "other")
    second = embeddings(other, tiny_batch())
    model = load_adapter(folder / "adapter", adapter_name="first")
    assert load_adapter(tmp_path / "other", model, adapter_name="second") is model
    for name, expected in (("second", second), ("first", first), ("second", second)):
        model.set_adapter(name)
        torch.testing.assert_close(embeddings(model, tiny_batch()), expected, rtol=0, atol=1e-6)
    base = embeddings(MXMCLRModel.from_pretrained(folder / "base"), tiny_batch())
    with model.disable_adapter():
        torch.testing.assert_close(embeddings(model, tiny_batch()), base, rtol=0, atol=1e-6)


def test_an_adapter_that_fails_leaves_those_before_it(saved, adapter):
    folder, expected = saved
    raise_alpha_and_note_it(adapter[0])
    model = load_adapter(folder / "adapter", adapter_name="first")
    with pytest.raises(AdapterError, match="embeds differ"):
        load_adapter(adapter[0], model, adapter_name="second")
    assert list(model.peft_config) == ["first"]
    torch.testing.assert_close(embeddings(model, tiny_batch()), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="already carries an adapter 'first'"):
        load_adapter(folder / "adapter", model, adapter_name="first")
    with pytest.raises(ValueError, match="pass the `PeftModel` around it"):
        load_adapter(folder / "adapter", adapted_model(model), adapter_name="second")


def test_the_state_of_a_base_is_the_same_with_and_without_adapters(saved):
    folder, _ = saved
    plain = MXMCLRModel.from_pretrained(folder / "base")
    carrying = adapted_model(load_adapter(folder / "adapter"))
    torch.testing.assert_close(base_state(carrying), dict(plain.state_dict()), rtol=0, atol=0)
    assert base_state(plain).keys() == plain.state_dict().keys()


def test_a_probe_is_written_of_the_adapter_in_the_folder_alone(saved, adapter):
    model = make_adapter(saved[0] / "base", seed=7)
    with pytest.raises(AdapterError, match="holds another adapter than the model"):
        save_probe(model, tiny_processor(), adapter[0])
    with pytest.raises(AdapterError, match="holds no adapter"):
        save_probe(model, tiny_processor(), saved[0] / "base")


def test_a_folder_says_whether_it_holds_an_adapter(saved):
    assert holds_adapter(saved[0] / "adapter")
    assert not holds_adapter(saved[0] / "base")
