import math

import pytest
import torch

from modeling_mxmclr.probe_mxmclr import (
    AdapterError,
    Probe,
    changes,
    differences,
    draw_pixels,
    evaluating,
    fingerprint,
    largest_differences,
    probe_inputs,
    probe_outputs,
    results_config,
    some_of,
)
from tests.references.tiny import tiny_model, tiny_processor


def make_probe(model=None):
    model = model or tiny_model()
    inputs = probe_inputs(tiny_processor())
    return Probe({}, {}, results_config(model), {}, {}, {**inputs, **probe_outputs(model, inputs)})


def test_pixels_are_the_blocks_that_the_hash_gives():
    pixels = draw_pixels([2, 3, 20, 12])
    assert pixels.shape == (2, 3, 20, 12)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    torch.testing.assert_close(pixels[1, 2, 19, 11], draw_pixels([2, 3, 8, 8])[1, 2, 7, 7])
    # Written down: another value is another input, and every probe out there would fail.
    torch.testing.assert_close(pixels[0, 0, 0, :3] * 127.5, torch.tensor([23.5, 23.5, 23.5]), atol=1e-4, rtol=0)


def test_the_two_pictures_and_texts_get_embeddings_of_their_own():
    outputs = probe_outputs(tiny_model(), probe_inputs(tiny_processor()))
    for name in ("image_embeds", "text_embeds"):
        assert (outputs[name][0] - outputs[name][1]).abs().max() > 1e-3


def test_outputs_do_not_depend_on_mode_and_leave_it_as_it_is():
    model = tiny_model("bert", "resnet")
    expected = probe_outputs(model, probe_inputs(tiny_processor()))
    model.train()
    model.text_model.eval()
    statistics = [buffer.clone() for buffer in model.buffers()]
    torch.testing.assert_close(probe_outputs(model, probe_inputs(tiny_processor())), expected)
    assert (model.training, model.text_model.training, model.vision_model.training) == (True, False, True)
    assert all(map(torch.equal, statistics, model.buffers()))


def test_outputs_of_a_half_precision_model_are_those_of_its_weights_in_float32():
    model = tiny_model().bfloat16()
    outputs = probe_outputs(model, probe_inputs(tiny_processor()))
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, probe_outputs(model.float(), probe_inputs(tiny_processor())))


def test_a_mode_comes_back_when_the_context_fails():
    model = tiny_model().train()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "other",
    [torch.tensor([1.0, 2.1]), torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.0]).half()],
)
def test_a_fingerprint_knows_values_type_and_shape(other):
    rows = torch.tensor([1.0, 2.0])
    assert fingerprint({"a": rows}) == fingerprint({"a": rows.clone()})
    assert fingerprint({"a": rows}) == fingerprint({"a": torch.tensor([[1.0, 0.0], [2.0, 0.0]])[:, 0]})
    assert fingerprint({"a": rows}) != fingerprint({"a": other})


def test_differences_are_told_apart():
    expected = {"same": "float32[1] 00", "gone": "float32[1] 00", "wide": "float32[1] 00", "other": "float32[1] 00"}
    found = {"same": "float32[1] 00", "new": "float32[1] 00", "wide": "float32[2] 00", "other": "float32[1] 01"}
    assert differences(expected, expected) == ""
    assert differences(expected, found) == (
        "lacks 'gone'; has an unknown 'new'; another type or shape of 'wide'; other values in 'other'"
    )
    assert some_of([*"abcde"]) == "'a', 'b', 'c' and 2 more"


def test_a_probe_comes_back_as_it_was_saved(tmp_path):
    probe = make_probe()
    probe.save(tmp_path)
    again = Probe.load(tmp_path)
    assert fingerprint(again.tensors) == fingerprint(probe.tensors)
    assert again.base_config == probe.base_config
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


@pytest.mark.parametrize("text", ["", "[", "{}", '{"tensors": {}}'])
def test_a_broken_record_is_refused(tmp_path, text):
    make_probe().save(tmp_path)
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(AdapterError, match=r"can't be read|is not the one"):
        Probe.load(tmp_path)


def test_a_config_is_compared_by_what_results_depend_on():
    model = tiny_model()
    before = results_config(model)
    model.config.objective, model.config._name_or_path = "clip", "elsewhere"
    assert changes(before, results_config(model)) == []
    model.config.text_config.layer_norm_eps = 0.5
    assert changes(before, results_config(model)) == ["`text_config.layer_norm_eps` is 0.5, was 1e-12"]


def test_the_largest_difference_is_infinite_where_there_is_no_number():
    probe = make_probe()
    outputs = {name: probe.tensors[name].clone() for name in ("image_embeds", "text_embeds", "logit_scale")}
    outputs["image_embeds"][1, 3] += 0.25
    outputs["text_embeds"][0, 0] = math.nan
    outputs["logit_scale"] = torch.zeros(2)
    gaps = largest_differences(probe, outputs)
    assert gaps == {"image_embeds": pytest.approx(0.25), "text_embeds": math.inf, "logit_scale": math.inf}
