import itertools
import re

import pytest
import torch
from torch import nn

from modeling_mxmclr import MXMCLRModel
from modeling_mxmclr.adapters_mxmclr import AdapterError, base_state, load_adapter
from tests.references import lora_jobs, tiny
from tests.references.adapters import disturb, embeddings, save_base
from tests.references.gloo_pool import GlooPool
from tests.references.tiny import TEXT_TOWERS, VISION_TOWERS, tiny_batch, tiny_model, tiny_processor
from training.arguments import LoraArguments
from training.checkpoints import load_model
from training.lora import HEADS, attach_adapter, describe_adapter, find_targets, fits
from training.models import is_frozen, set_training_mode

MORE_VISION_TOWERS = {"deit": tiny.CLIP_VISION, "dinov3_vit": tiny.CLIP_VISION}
# What a family's layers are called in memory, where LoRA is usually put; `auto` must find these among others.
USUAL = {
    "bert": "query value", "roberta": "query value", "distilbert": "q_lin v_lin", "modernbert": "Wqkv Wo",
    "clip_text_model": "q_proj v_proj", "siglip_text_model": "q_proj v_proj", "t5": "q v wi wo", "mpnet": "q v",
    "vit": "q_proj v_proj", "deit": "q_proj v_proj", "clip_vision_model": "q_proj v_proj",
    "siglip_vision_model": "q_proj v_proj", "dinov2": "q_proj v_proj", "dinov3_vit": "q_proj v_proj",
    "swin": "q_proj v_proj", "resnet": "convolution", "convnext": "pwconv1 pwconv2", "mobilenet_v2": "convolution",
}  # fmt: skip
VISIONS = [*VISION_TOWERS, *MORE_VISION_TOWERS]
PAIRS = list(zip(itertools.cycle(TEXT_TOWERS), VISIONS))  # each family at least once


@pytest.fixture(autouse=True)
def _more_towers(monkeypatch):
    for name, fields in MORE_VISION_TOWERS.items():
        monkeypatch.setitem(tiny.VISION_TOWERS, name, fields)


def adapt(model, **fields):
    return attach_adapter(model, tiny_processor(), LoraArguments(**{"lora_rank": 4, **fields}))


def targets(model, **fields):
    return find_targets(model, tiny_processor(), LoraArguments(**{"lora_rank": 4, **fields}))


def gradients(model, batch):
    model(**batch).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("text", "vision"), PAIRS)
def test_an_adapter_of_any_family_learns_and_comes_back_and_merges(text, vision, tmp_path):
    base = save_base(tmp_path / "base", text, vision)
    model = MXMCLRModel.from_pretrained(base)
    adapter = adapt(model)
    names = targets(MXMCLRModel.from_pretrained(base))
    for family, tower in ((text, "text"), (vision, "vision")):
        for layer in USUAL[family].split():
            assert any(re.fullmatch(rf"{tower}_model\..*\b{layer}", name) for name in names), (family, layer)
    found = gradients(model, tiny_batch())
    assert found.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    for tower in ("text_model", "vision_model"):
        assert any(rows.any() for name, rows in found.items() if name.startswith(tower) and "lora_B" in name)
    disturb(model)
    model.eval()
    adapter.save_pretrained(tmp_path / "adapter")
    expected = embeddings(model, tiny_batch())
    torch.testing.assert_close(embeddings(load_model(tmp_path / "adapter"), tiny_batch()), expected, rtol=0, atol=1e-6)
    # In float64: fifty batch norms over small variances magnify what merging rounds otherwise.
    merged = load_adapter(tmp_path / "adapter").double().merge_and_unload(safe_merge=True)
    assert merged.state_dict().keys() == MXMCLRModel.from_pretrained(base).state_dict().keys()
    batch = tiny_batch(torch.float64)
    torch.testing.assert_close(embeddings(merged, batch), embeddings(model.double(), batch), rtol=0, atol=1e-8)


@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"use_dora": True}, {"use_rslora": True, "use_dora": True}])
def test_variants_come_back_and_merge(fields, tmp_path):
    model = MXMCLRModel.from_pretrained(save_base(tmp_path / "base"))
    adapter = adapt(model, **fields, lora_dropout=0.1)
    disturb(model)
    adapter.save_pretrained(tmp_path / "adapter")
    expected = embeddings(model, tiny_batch())
    loaded = load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(embeddings(loaded, tiny_batch()), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings(loaded.merge_and_unload(), tiny_batch()), expected, rtol=0, atol=5e-6)


def test_an_untrained_adapter_changes_nothing():
    model = tiny_model()
    before = embeddings(model, tiny_batch())
    adapt(model, use_dora=True)
    torch.testing.assert_close(embeddings(model, tiny_batch()), before, rtol=0, atol=1e-6)


def test_layers_that_no_embedding_depends_on_get_none():
    model = tiny_model("mpnet", "siglip_vision_model", text_pooling="cls")
    names = targets(model)
    everything = {name for name, each in model.named_modules() if fits(each) and not name.endswith("projection")}
    # PyTorch's attention reads the weight of its output layer without calling it.
    assert everything - set(names) == {"vision_model.head.attention.out_proj"}
    model = tiny_model("bert", "vit", vision_pooling="mean")
    assert not any("pooler" in name for name in targets(model, lora_towers="vision"))
    assert any("pooler" in name for name in targets(tiny_model("bert", "vit"), lora_towers="vision"))


def test_grouped_and_dilated_convolutions_are_left_out():
    assert fits(nn.Conv2d(4, 4, 3))
    assert not fits(nn.Conv2d(4, 4, 3, groups=4))
    assert not fits(nn.Conv2d(4, 4, 3, dilation=2))
    assert not fits(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert fits(nn.Embedding(4, 4))
    assert not fits(nn.LayerNorm(4))
    model = tiny_model("bert", "convnext")
    assert not any("dwconv" in name for name in targets(model))


def test_targets_are_chosen_by_tower_and_by_the_ends_of_names():
    model = tiny_model()
    assert {name.partition(".")[0] for name in targets(model, lora_towers="text")} == {"text_model"}
    chosen = targets(model, lora_targets=["query", r"vision_model\..*\.v_proj"])
    assert chosen == [
        "text_model.encoder.layer.0.attention.self.query",
        "text_model.encoder.layer.1.attention.self.query",
        "vision_model.layers.0.attention.v_proj",
        "vision_model.layers.1.attention.v_proj",
    ]
    with pytest.raises(ValueError, match=r"`lora_targets` 'attn' matches no layer .* for example, \['text_model"):
        targets(model, lora_targets=["attn"])
    with pytest.raises(ValueError, match="'LayerNorm' matches no layer that an adapter fits"):
        targets(model, lora_targets=["LayerNorm"])


def test_heads_that_are_there_learn_with_the_scale():
    model = tiny_model(projection_dim=32, text_projection="none")
    adapter = adapt(model)
    assert adapter.model.peft_config["default"].modules_to_save == list(HEADS[1:])
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora" not in name}
    assert learning == {f"{head}.modules_to_save.default.weight" for head in HEADS[1:]}


def test_the_tower_without_an_adapter_stays_frozen_and_so_may_be_run_once_for_all_epochs():
    model = tiny_model()
    adapt(model, lora_towers="vision")
    assert is_frozen(model.text_model)
    assert not is_frozen(model.vision_model)
    model = tiny_model()
    adapt(model, lora_towers="text")
    assert not is_frozen(model.text_model)


def test_batch_norms_keep_the_statistics_of_the_base():
    model = tiny_model("bert", "resnet")
    before = {name: rows.clone() for name, rows in base_state(model).items()}
    adapt(model)
    set_training_mode(model)
    for _ in range(2):
        gradients(model, tiny_batch())
    disturb(model)
    torch.testing.assert_close(base_state(model), before, rtol=0, atol=0)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert model.visual_projection.training


@pytest.mark.parametrize(("text", "vision"), [("bert", "resnet"), ("t5", "vit"), ("modernbert", "convnext")])
def test_norms_learn_with_their_statistics_and_come_back_and_merge_where_asked_for(text, vision, tmp_path):
    base = save_base(tmp_path / "base", text, vision)
    model = MXMCLRModel.from_pretrained(base)
    adapter = adapt(model, lora_norms=True)
    assert "parameters in heads, scale and norms, which learn whole" in describe_adapter(adapter)
    set_training_mode(model)
    frozen = {name: rows.clone() for name, rows in base_state(model).items()}
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    torch.testing.assert_close(base_state(model), frozen, rtol=0, atol=0)
    learned = [name for name, weight in model.named_parameters() if "modules_to_save" in name and weight.grad.any()]
    for tower in ("text_model", "vision_model"):
        assert any(name.startswith(tower) and "norm" in name.lower() for name in learned)
    adapter.save_pretrained(tmp_path / "adapter")
    expected = embeddings(model.eval(), tiny_batch())
    again = load_model(tmp_path / "adapter")
    torch.testing.assert_close(embeddings(again.eval(), tiny_batch()), expected)
    merged = load_adapter(tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(embeddings(merged.eval(), tiny_batch()), expected, rtol=1e-4, atol=1e-5)


def test_norms_of_a_tower_without_an_adapter_stay_frozen():
    model = tiny_model("bert", "resnet")
    adapt(model, lora_norms=True, lora_towers="vision")
    assert is_frozen(model.text_model)
    set_training_mode(model)
    assert any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_an_adapter_beside_drifted_statistics_is_refused(tmp_path):
    model = MXMCLRModel.from_pretrained(save_base(tmp_path / "base"))
    adapter = adapt(model)
    model.train()  # instead of `set_training_mode`
    model(**tiny_batch())
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"other values in .*num_batches_tracked"):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize("vision", ["resnet", "vit"])
def test_activation_checkpointing_gives_the_same_gradients(vision):
    found = []
    for saves_memory in (False, True):
        model = tiny_model("bert", vision)
        adapt(model)
        disturb(model)
        if saves_memory:
            model.activation_checkpointing_enable()
        set_training_mode(model)
        torch.manual_seed(1)  # of dropout
        found.append(gradients(model, tiny_batch()))
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    torch.testing.assert_close(found[1], found[0])


def test_bf16_autocast_trains_float32_adapters():
    model = tiny_model()
    adapt(model)
    disturb(model)
    expected = gradients(model, tiny_batch())
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, tiny_batch())
    assert {each.dtype for each in found.values()} == {torch.float32}
    assert found.keys() == expected.keys()
    joined, wanted = (torch.cat([grads[name].flatten() for name in expected]) for grads in (found, expected))
    assert nn.functional.cosine_similarity(joined, wanted, dim=0) > 0.98


@pytest.mark.slow
def test_two_ranks_end_with_the_gradient_of_one():
    shares = {"images": [[0, 3, 4], [1, 2, 5, 6]], "texts": [[0, 1, 2, 3, 4, 5], []]}
    loss, expected = lora_jobs.lora_gradients(None, None)
    largest = max(abs(gradient).max() for gradient in expected.values())
    pool = GlooPool(2)
    try:
        answers = pool.run(lora_jobs.lora_gradients, shares)
    finally:
        pool.close()
    for rank_loss, found in answers:
        assert rank_loss == pytest.approx(loss, abs=1e-10)
        assert found.keys() == expected.keys()
        assert all(abs(found[name] - expected[name]).max() < 1e-10 * largest for name in expected)


def test_what_is_said_of_an_adapter_adds_up():
    model = tiny_model()
    total = sum(weight.numel() for weight in model.parameters())
    adapter = adapt(model, lora_targets=["query"], use_rslora=True)
    text = describe_adapter(adapter)
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert "rsLoRA of rank 4, alpha 16, on 2 layers:" in text
    assert "2 x text_model.encoder.layer.*.attention.self.query" in text
    assert f"{2 * 2 * 4 * 32:,} parameters in the text tower" in text
    assert "0 parameters in the vision tower" in text
    assert "1,025 parameters in heads and scale" in text
    assert f"together {learning / total:.2%} of the base's {total:,}" in text


def test_a_folder_is_named_by_its_whole_path(tmp_path, monkeypatch):
    save_base(tmp_path / "runs" / "base")
    monkeypatch.chdir(tmp_path)
    adapter = adapt(MXMCLRModel.from_pretrained("runs/base"))
    assert adapter.model.peft_config["default"].base_model_name_or_path == str(tmp_path / "runs" / "base")
