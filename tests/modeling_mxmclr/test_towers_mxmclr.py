import pytest
import torch
from transformers.modeling_outputs import ModelOutput

from modeling_mxmclr.towers_mxmclr import build_projection, build_tower, pool_tower_output, tower_class, tower_width
from tests.references.tiny import TEXT_TOWERS, VISION_TOWERS, tiny_batch, tiny_config, tiny_model, tower_config

every_pair = pytest.mark.parametrize(
    ("text", "vision"), [*((text, "vit") for text in TEXT_TOWERS), *(("bert", vision) for vision in VISION_TOWERS)]
)


@every_pair
def test_any_tower_embeds_to_unit_vectors_and_learns(text, vision):
    model = tiny_model(
        text, vision
    ).train()  # fresh batch norms, unlike trained ones, let nothing through in eval mode
    output = model(**tiny_batch(), output_logits=True)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(output.text_embeds.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(output.logits_per_image, output.logits_per_text.T)
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in model.visual_projection.parameters())
    assert all(parameter.grad.any() for parameter in model.text_projection.parameters())


@every_pair
def test_any_tower_survives_a_round_trip_to_disk(text, vision, tmp_path):
    model = tiny_model(text, vision)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert architecture(again) == architecture(model)
    before, after = model(**tiny_batch()), again(**tiny_batch())
    torch.testing.assert_close(after.image_embeds, before.image_embeds, rtol=0, atol=0)
    torch.testing.assert_close(after.text_embeds, before.text_embeds, rtol=0, atol=0)


def architecture(model):
    """The config without the `dtype` that transformers notes in each part when it loads one."""
    config = model.config.to_diff_dict()
    parts = [config, config["text_config"], config["vision_config"]]
    return [{name: value for name, value in part.items() if not name.endswith(("dtype", "_config"))} for part in parts]


@pytest.mark.parametrize("text", TEXT_TOWERS)
def test_padding_does_not_change_a_text(text):
    model = tiny_model(text, text_pooling="mean")
    batch = tiny_batch()
    ids, mask = batch["input_ids"][4:5], batch["attention_mask"][4:5]
    short = model.get_text_features(ids[:, :2], mask[:, :2])
    torch.testing.assert_close(model.get_text_features(ids, mask), short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pooling_layer_that_nobody_reads_is_left_out(pooling):
    names = dict(build_tower(tower_config("bert"), pooling).named_parameters())
    assert not any("pooler" in name for name in names)
    assert any("pooler" in name for name in dict(build_tower(tower_config("bert"), "pooler").named_parameters()))


HIDDEN = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", [[1, 1, 0], [1, 1, 1]], [[2, 3, 4, 5], [16, 17, 18, 19]]),
        ("cls", [[1, 1, 0], [0, 1, 1]], [[0, 1, 2, 3], [16, 17, 18, 19]]),
        ("last", [[1, 1, 0], [0, 1, 1]], [[4, 5, 6, 7], [20, 21, 22, 23]]),
        ("auto", None, [[4, 5, 6, 7], [16, 17, 18, 19]]),
        ("cls", None, [[0, 1, 2, 3], [12, 13, 14, 15]]),
        ("last", None, [[8, 9, 10, 11], [20, 21, 22, 23]]),
    ],
)
def test_pooling_reads_the_attended_tokens(pooling, mask, expected):
    mask = None if mask is None else torch.tensor(mask)
    pooled = pool_tower_output(ModelOutput(last_hidden_state=HIDDEN), pooling, mask)
    torch.testing.assert_close(pooled, torch.tensor(expected, dtype=torch.float32))


def test_cells_of_a_feature_map_are_its_tokens():
    maps = ModelOutput(last_hidden_state=torch.arange(8.0).reshape(1, 2, 2, 2))
    torch.testing.assert_close(pool_tower_output(maps, "mean"), torch.tensor([[1.5, 5.5]]))


def test_pooler_of_any_shape_is_flattened_and_its_absence_is_an_error():
    pooled = ModelOutput(last_hidden_state=HIDDEN, pooler_output=torch.ones(2, 4, 1, 1))
    assert pool_tower_output(pooled, "auto").shape == (2, 4)
    with pytest.raises(ValueError, match="`pooler` needs a tower with a `pooler_output`"):
        pool_tower_output(ModelOutput(last_hidden_state=HIDDEN), "pooler")


@pytest.mark.parametrize(("model_type", "width"), [("siglip_text_model", 24), ("swin", 32), ("mobilenet_v2", 1280)])
def test_width_is_that_of_the_pooled_vector(model_type, width):
    assert tower_width(build_tower(tower_config(model_type), "auto"), "auto") == width


def test_dual_encoder_is_no_tower():
    with pytest.raises(ValueError, match=r"got that of 'mxmclr'; pass its `.text_config`"):
        tower_class(tiny_config())


def test_no_projection_needs_a_fitting_width():
    assert build_projection("none", 8, 8, None)(torch.ones(1, 8)).shape == (1, 8)
    with pytest.raises(ValueError, match="`projection_dim` equal to the tower's width 8, got 9"):
        build_projection("none", 8, 9, None)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_heads_start_with_outputs_as_large_as_their_inputs(kind):
    model = tiny_model(text_projection=kind, projection_dim=64, projection_hidden_dim=512)
    rows = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    ratio = model.text_projection(rows).std() / rows.std()
    assert 0.8 < ratio < 1.2 if kind == "linear" else 0.4 < ratio < 1.2
