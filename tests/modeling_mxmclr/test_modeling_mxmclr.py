import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    pipeline,
)

from modeling_mxmclr import MXMCLRConfig, MXMCLRModel
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import EQUAL_FOLDS, OBJECTIVES
from modeling_mxmclr.scale_mxmclr import LogitScale
from tests.references.tiny import (
    CLIP_TEXT,
    CLIP_VISION,
    VISION_TOWERS,
    equal_batch,
    picture,
    tiny_batch,
    tiny_model,
    tiny_processor,
    tower_config,
)


def test_loss_is_the_objective_of_the_embeddings():
    model, batch = tiny_model(objective_settings={"soft_weight": 0.3}), tiny_batch()
    output = model(**batch)
    observed = Observations(output.image_embeds, output.text_embeds, batch["image_group_ids"], batch["text_group_ids"])
    expected = OBJECTIVES["mfh"](observed, output.logit_scale.exp(), soft_weight=0.3)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.loss_components, expected.components)


def test_soft_weight_of_a_step_overrides_the_setting():
    batch = tiny_batch()
    scheduled = tiny_model(objective_settings={"soft_weight": 0.9})(**batch, soft_weight=0.2)
    torch.testing.assert_close(scheduled.loss, tiny_model(objective_settings={"soft_weight": 0.2})(**batch).loss)
    terms = {"terms": {"alignment": 0.1, "pooled": {"weight": 0.2, "pooling": "mean"}}}
    scheduled = tiny_model(objective_settings=terms)(**batch, soft_weight=0.2)
    settled = tiny_model(objective_settings=terms | {"soft_weight": 0.2})(**batch)
    torch.testing.assert_close(scheduled.loss, settled.loss)
    assert {"hard", "soft", "alignment", "pooled"} <= scheduled.loss_components.keys()
    with pytest.raises(ValueError, match="`soft_weight` is no setting of the objective 'clip'"):
        tiny_model(objective="clip")(**batch, soft_weight=0.2)


@pytest.mark.parametrize(
    ("given", "return_loss", "output_logits", "has_loss", "has_logits"),
    [
        ("both", None, None, True, False),
        ("both", False, None, False, True),
        ("both", True, True, True, True),
        ("both", False, False, False, False),
        ("images", None, None, False, False),
        ("texts", None, None, False, False),
        ("no ids", None, None, False, True),
    ],
)
def test_loss_and_logits_come_when_asked_for(given, return_loss, output_logits, has_loss, has_logits):
    batch = tiny_batch()
    drop = {"images": ["input_ids", "attention_mask", "text_group_ids"], "texts": ["pixel_values", "image_group_ids"]}
    drop |= {"no ids": ["image_group_ids", "text_group_ids"], "both": []}
    for name in drop[given]:
        del batch[name]
    output = tiny_model()(**batch, return_loss=return_loss, output_logits=output_logits)
    assert (output.loss is not None) == has_loss
    assert (output.logits_per_image is not None) == has_logits


def test_a_tuple_comes_back_where_it_is_asked_for():
    model, batch = tiny_model(), tiny_batch()
    torch.testing.assert_close(model(**batch, return_dict=False)[0], model(**batch).loss)


def test_features_are_the_embeddings_of_forward():
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    torch.testing.assert_close(model.get_image_features(batch["pixel_values"]), output.image_embeds)
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(texts, output.text_embeds)
    pooled = model.get_text_tower_output(batch["input_ids"], batch["attention_mask"])
    del batch["input_ids"], batch["attention_mask"]
    cached = model(**batch, text_tower_output=pooled)
    torch.testing.assert_close(cached.text_embeds, output.text_embeds)
    torch.testing.assert_close(cached.loss, output.loss)


def test_dropout_before_the_heads_is_for_training_alone():
    model = tiny_model(projection_dropout=0.5)
    pixels = tiny_batch()["pixel_values"]
    torch.testing.assert_close(model.get_image_features(pixels), model.get_image_features(pixels), rtol=0, atol=0)
    model.projection_dropout.train()
    assert not torch.equal(model.get_image_features(pixels), model.get_image_features(pixels))


def test_keywords_of_a_tower_pass_through_and_others_are_refused():
    model, batch = tiny_model(), tiny_batch()
    plain = model(**batch).text_embeds
    typed = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"])).text_embeds
    assert not torch.allclose(plain, typed)
    assert model(**batch, interpolate_pos_encoding=True, output_hidden_states=True).vision_model_output.hidden_states
    with pytest.raises(TypeError, match=r"got \['token_types'\], which neither BertModel nor ViTModel takes"):
        model(**batch, token_types=1)


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_rank_without_one_modality_still_reaches_its_tower(side):
    model, batch = tiny_model(), tiny_batch()
    names = {"image": ["pixel_values", "image_group_ids"], "text": ["input_ids", "attention_mask", "text_group_ids"]}
    batch |= {name: batch[name][:0] for name in names[side]}
    with pytest.warns(UserWarning, match="both an image and a text"):
        model(**batch).loss.backward()
    tower = model.vision_model if side == "image" else model.text_model
    assert all(parameter.grad is not None for parameter in tower.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_autocast_leaves_the_loss_in_float32(objective):
    make_batch = equal_batch if objective in EQUAL_FOLDS else tiny_batch
    model, batch = tiny_model(objective=objective), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, output_logits=True)
    assert output.loss.dtype == output.logits_per_image.dtype == output.image_embeds.dtype == torch.float32
    observed = Observations(output.image_embeds, output.text_embeds, batch["image_group_ids"], batch["text_group_ids"])
    torch.testing.assert_close(output.loss, OBJECTIVES[objective](observed, output.logit_scale.exp()).loss)
    whole = tiny_model(objective=objective).double()(**make_batch(torch.float64))
    assert whole.loss.dtype == torch.float64


def test_scale_is_clamped_and_may_come_down_but_not_go_up():
    scale = LogitScale(100.0)
    for start, gradient, passes in ((9.0, 1.0, True), (9.0, -1.0, False), (2.0, -1.0, True), (2.0, 1.0, True)):
        scale.weight.data.fill_(start)
        scale.zero_grad()
        value = scale()
        torch.testing.assert_close(value.exp(), torch.tensor([start]).exp().clamp(max=100.0))
        value.backward(torch.tensor([gradient]))
        assert scale.weight.grad.item() == (gradient if passes else 0)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention", None])
def test_instances_come_in_order_of_appearance_as_unit_vectors(pooling):
    model = tiny_model(view_pooling="max")
    embeds = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    ids = torch.tensor([7, 3, 7, 3, 1])
    pooled = model.get_instance_features(embeds, ids, pooling)
    for row, views in zip(pooled, (embeds[[0, 2]], embeds[[1, 3]], embeds[[4]]), strict=True):
        mean = torch.nn.functional.normalize(views.mean(dim=0), dim=0)
        weights = (views @ mean).softmax(dim=0)
        joined = {
            "mean": views.mean(dim=0),
            "max": views.max(dim=0).values,
            "attention": (weights[:, None] * views).sum(dim=0),
        }[pooling or "max"]
        torch.testing.assert_close(row, torch.nn.functional.normalize(joined, dim=0))


def clip_checkpoint(folder):
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=12))
    model.logit_scale.data.fill_(3.3)
    model.save_pretrained(folder)
    return model.eval()


def siglip_checkpoint(folder):
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION))
    model.logit_scale.data.fill_(4.8)  # beyond log 100, as released SigLIP models are
    model.logit_bias.data.fill_(-9.5)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("make", [clip_checkpoint, siglip_checkpoint])
def test_a_dual_encoder_taken_over_gives_equal_embeddings_and_logits(make, tmp_path):
    source, batch = make(tmp_path / "source"), tiny_batch()
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    expected = source(**inputs)
    MXMCLRModel.from_clip_pretrained(tmp_path / "source").save_pretrained(tmp_path / "ours")
    for model in (
        MXMCLRModel.from_clip_pretrained(tmp_path / "source"),
        MXMCLRModel.from_pretrained(tmp_path / "ours"),
    ):
        output = model(**inputs)
        torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.text_embeds, expected.text_embeds, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, rtol=1e-5, atol=1e-4)


def test_what_a_dual_encoder_settles_can_not_be_changed(tmp_path):
    clip_checkpoint(tmp_path)
    assert MXMCLRModel.from_clip_pretrained(tmp_path, objective="clip").config.objective == "clip"
    with pytest.raises(TypeError, match=r"\['projection_dim'\] are taken over"):
        MXMCLRModel.from_clip_pretrained(tmp_path, projection_dim=8)


def test_two_checkpoints_become_the_towers_of_one_model(tmp_path):
    towers = {"text": tiny_model("distilbert").text_model, "vision": tiny_model("bert", "resnet").vision_model}
    for name, tower in towers.items():
        tower.save_pretrained(tmp_path / name)
    model = MXMCLRModel.from_text_vision_pretrained(tmp_path / "text", tmp_path / "vision", projection_dim=8).eval()
    for tower, loaded in ((towers["text"], model.text_model), (towers["vision"], model.vision_model)):
        torch.testing.assert_close(loaded.state_dict(), tower.state_dict())
    assert model(**tiny_batch()).image_embeds.shape == (7, 8)
    with pytest.raises(TypeError, match=r"has no field \['projection_size'\]"):
        MXMCLRModel.from_text_vision_pretrained(tmp_path / "text", tmp_path / "vision", projection_size=8)


def test_a_config_gives_a_fresh_tower_beside_a_pretrained_one(tmp_path):
    text = tiny_model().text_model
    text.save_pretrained(tmp_path)
    for vision in (tower_config("resnet"), {"model_type": "resnet", **VISION_TOWERS["resnet"]}):
        model = MXMCLRModel.from_text_vision_pretrained(tmp_path, vision)
        torch.testing.assert_close(model.text_model.state_dict(), text.state_dict())
        assert model.vision_model.config.hidden_sizes == VISION_TOWERS["resnet"]["hidden_sizes"]


def test_halves_of_dual_encoders_become_towers(tmp_path):
    clip, siglip = clip_checkpoint(tmp_path / "clip"), siglip_checkpoint(tmp_path / "siglip")
    model = MXMCLRModel.from_text_vision_pretrained(tmp_path / "siglip", tmp_path / "clip")
    torch.testing.assert_close(model.text_model.state_dict(), siglip.text_model.state_dict())
    torch.testing.assert_close(model.vision_model.state_dict(), clip.vision_model.state_dict())


def test_a_sentence_transformer_keeps_its_pooling(tmp_path):
    tiny_model().text_model.save_pretrained(tmp_path / "text")
    tiny_model().vision_model.save_pretrained(tmp_path / "vision")
    (tmp_path / "text" / "1_Pooling").mkdir()
    (tmp_path / "text" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model = MXMCLRModel.from_text_vision_pretrained(tmp_path / "text", tmp_path / "vision")
    assert model.config.text_pooling == "mean"


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    tiny_model().text_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a CLIP or SigLIP checkpoint, .* holds a BertModel"):
        MXMCLRModel.from_clip_pretrained(tmp_path)


def test_checkpoint_is_safetensors_alone_and_every_auto_class_reads_it(tmp_path):
    model = tiny_model(objective="clip", logit_scale_init_value=1.5)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    assert load_file(tmp_path / "model.safetensors")["logit_scale.weight"].item() == 1.5
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MXMCLRConfig)
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        torch.testing.assert_close(auto.from_pretrained(tmp_path)(**tiny_batch()).loss, model(**tiny_batch()).loss)


def test_zero_shot_pipeline_ranks_labels_by_our_logits(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image, labels = picture(), ["red chair", "blue table", "tall"]
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    scores = {row["label"]: row["score"] for row in classify(image, labels, hypothesis_template="{}")}
    logits = model(**processor(images=[[image]], text=[labels]), return_loss=False).logits_per_image[0]
    torch.testing.assert_close(torch.tensor([scores[label] for label in labels]), logits.softmax(dim=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_group_ids": torch.arange(6)}, r"`image_group_ids` has shape \(6,\) for 7 observations"),
        ({"text_group_ids": torch.arange(7)}, r"`text_group_ids` has shape \(7,\) for 6 observations"),
        ({"text_group_ids": None, "return_loss": True}, "needs `image_group_ids` and `text_group_ids`"),
        ({"input_ids": None}, "A loss needs `pixel_values` and `input_ids`, got one modality"),
    ],
)
def test_bad_batches_name_the_culprit(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_batch() | change)


def test_instance_features_need_one_id_a_row():
    with pytest.raises(ValueError, match=r"`group_ids` has shape \(2,\) for 3 observations"):
        tiny_model().get_instance_features(torch.eye(3), torch.tensor([0, 1]))


def test_unknown_objective_stops_at_construction():
    with pytest.raises(ValueError, match="`objective` must be one of"):
        tiny_model(objective="mse")


def test_a_checkpoint_of_another_model_type_is_refused(tmp_path):
    tower_config("bert").save_pretrained(tmp_path)
    for cls in (MXMCLRConfig, MXMCLRModel):
        with pytest.raises(ValueError, match="`model_type` must be 'mxmclr', the checkpoint's config says 'bert'"):
            cls.from_pretrained(tmp_path)
