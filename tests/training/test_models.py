import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from tests.references.tiny import (
    BERT,
    CLIP_TEXT,
    CLIP_VISION,
    VISION_TOWERS,
    tiny_image_processor,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from training.arguments import ModelArguments
from training.models import (
    build_model,
    freeze_first_layers,
    image_size_of,
    is_frozen,
    learn_tokenizer,
    resolve_checkpoint,
    set_training_mode,
)

CAPTIONS = ["a red chair", "a blue table with round legs", "tall green chair"]
FRESH = {"text_config": '{"model_type": "bert"}', "vision_config": '{"model_type": "resnet"}'}


def fresh(**fields):
    text = {"model_type": "bert", **BERT}
    del text["vocab_size"]
    arguments = ModelArguments(**{"projection_dim": 8, "image_size": 24, **FRESH, **fields})
    if not fields.get("text_model"):
        arguments.text_config = text
    arguments.vision_config = {"model_type": "resnet", **VISION_TOWERS["resnet"]}
    return arguments


def test_fresh_towers_get_a_tokenizer_of_the_captions_and_images_of_the_size():
    model, processor = build_model(fresh(objective="clip", vocabulary_size=60), CAPTIONS)
    tokenizer = processor.tokenizer
    assert model.config.text_config.vocab_size == len(tokenizer) <= 60
    assert tokenizer.decode(tokenizer("A red CHAIR")["input_ids"], skip_special_tokens=True) == "a red chair"
    assert tokenizer.model_max_length == BERT["max_position_embeddings"]
    assert image_size_of(processor) == (24, 24)
    assert model.config.objective == "clip"


def test_learned_vocabulary_does_not_depend_on_the_order_of_captions():
    vocabularies = [learn_tokenizer(captions, 50).get_vocab() for captions in (CAPTIONS, CAPTIONS[::-1])]
    assert vocabularies[0] == vocabularies[1]
    assert vocabularies[0]["[PAD]"] == 0


def test_frozen_batch_norms_stay_as_they_are_while_the_rest_learns():
    model, _ = build_model(fresh(freeze_batch_norms=True), CAPTIONS)
    set_training_mode(model)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert model.vision_model.training
    assert any(weight.requires_grad for weight in model.vision_model.parameters())


def test_a_pretrained_tower_stands_beside_a_fresh_one(tmp_path):
    tower = tiny_model().text_model
    tower.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    arguments = fresh(text_model=str(tmp_path), text_config=None, text_pooling="mean", max_text_length=9)
    model, processor = build_model(arguments, [])
    torch.testing.assert_close(model.text_model.embeddings.state_dict(), tower.embeddings.state_dict())
    assert model.config.text_pooling == "mean"
    assert processor.tokenizer.model_max_length == 9


def test_a_checkpoint_of_ours_goes_on_under_another_objective(tmp_path):
    start = tiny_model()
    start.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    settings = '{"soft_weight": 0.25}'
    model, _ = build_model(ModelArguments(model=str(tmp_path), objective_settings=settings), [])
    torch.testing.assert_close(model.state_dict(), start.state_dict())
    assert model.objective.keywords == {"soft_weight": 0.25}


def test_a_clip_model_is_taken_over_with_its_processor(tmp_path):
    CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=12)).save_pretrained(
        tmp_path
    )
    CLIPProcessor(tiny_image_processor(), tiny_tokenizer()).save_pretrained(tmp_path)
    model, processor = build_model(ModelArguments(clip_model=str(tmp_path)), [])
    assert model.config.projection_dim == 12
    assert processor.text_padding == "longest"


def test_packages_hold_checkpoints_that_are_found_without_running_them(tmp_path, monkeypatch):
    package = tmp_path / "towers_of_a_test"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_checkpoint("package:towers_of_a_test/model") == str(package / "model")
    assert resolve_checkpoint("org/name") == "org/name"
    with pytest.raises(ValueError, match="names no folder of the installed package"):
        resolve_checkpoint("package:towers_of_a_test/weights")
    with pytest.raises(ValueError, match=r"needs the package not_there; `pip install --no-deps not-there`"):
        resolve_checkpoint("package:not_there/model")


@pytest.mark.parametrize(
    ("text", "how_many", "learning"), [("bert", "1", "encoder.layer.1."), ("bert", "2", "pooler."), ("bert", "0", "")]
)
def test_first_layers_and_what_comes_before_them_are_frozen(text, how_many, learning):
    tower = tiny_model(text).text_model
    freeze_first_layers(tower, how_many)
    names = [name for name, weight in tower.named_parameters() if weight.requires_grad]
    if how_many == "0":
        assert len(names) == len(list(tower.parameters()))
    else:
        assert all(name.startswith((learning, "pooler.")) for name in names)
        assert any(name.startswith(learning) for name in names)


def test_stages_of_a_convolutional_tower_are_its_layers():
    tower = tiny_model("bert", "resnet").vision_model
    freeze_first_layers(tower, "1")
    assert all("stages.1" in name for name, weight in tower.named_parameters() if weight.requires_grad)
    with pytest.raises(ValueError, match="`ResNetModel` has 2 layers, 3 can't be frozen"):
        freeze_first_layers(tower, "3")


def test_what_is_frozen_stays_in_evaluation_mode():
    model = tiny_model("bert", "resnet")
    freeze_first_layers(model.text_model, "all")
    freeze_first_layers(model.vision_model, "1")
    set_training_mode(model)
    assert is_frozen(model.text_model)
    assert not any(module.training for module in model.text_model.modules() if list(module.parameters()))
    norms = {name: module for name, module in model.vision_model.named_modules() if "normalization" in name}
    assert {name: norm.training for name, norm in norms.items()} == {name: "stages.1" in name for name in norms}
    assert model.visual_projection.training
