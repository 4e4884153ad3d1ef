import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipImageProcessorPil, SiglipProcessor

from modeling_mxmclr import MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.tiny import picture, tiny_processor, tiny_tokenizer

IMAGES, TEXTS = [[picture(0), picture(1)], [], [picture(2)]], [["red chair"], ["a table", "round"], []]


def test_folds_become_flat_rows_with_the_id_of_their_instance():
    batch = tiny_processor()(images=IMAGES, text=TEXTS, instance_ids=["a", "b", "c"])
    a, b, c = map(hash_instance_id, "abc")
    assert batch["image_group_ids"].tolist() == [a, a, c]
    assert batch["text_group_ids"].tolist() == [a, b, b]
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["input_ids"].tolist() == [[1, 4, 7, 2], [1, 11, 8, 2], [1, 9, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_without_ids_instances_are_numbered():
    batch = tiny_processor()(images=IMAGES, text=TEXTS)
    assert batch["image_group_ids"].tolist() == [0, 0, 2]
    assert batch["text_group_ids"].tolist() == [0, 1, 1]


def test_either_side_alone_is_fine_and_no_observation_is_an_empty_tensor():
    processor = tiny_processor()
    assert set(processor(images=IMAGES)) == {"pixel_values", "image_group_ids"}
    assert "pixel_values" not in processor(text=TEXTS)
    empty = processor(images=[[], []], text=[["red"], ["a"]])
    assert empty["pixel_values"].shape == (0, 3, 32, 32)
    assert empty["image_group_ids"].shape == (0,)
    empty = processor(images=[[picture()]], text=[[]])
    assert empty["input_ids"].shape[0] == empty["attention_mask"].shape[0] == empty["text_group_ids"].shape[0] == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "F", "PA"])
def test_any_mode_becomes_three_channels(mode):
    image = picture().convert("L").convert("I;16") if mode == "I;16" else picture().convert(mode)
    assert tiny_processor()(images=[[image]])["pixel_values"].shape == (1, 3, 32, 32)


def test_transparency_shows_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    white = Image.new("RGB", (4, 4), "white")
    shown, expected = tiny_processor()(images=[[clear, white]])["pixel_values"]
    torch.testing.assert_close(shown, expected)


def test_16_bit_depth_keeps_its_range():
    grey = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    shown, expected = tiny_processor()(images=[[grey, Image.new("L", (4, 4), 128)]])["pixel_values"]
    torch.testing.assert_close(shown, expected)


def test_processor_survives_a_round_trip(tmp_path):
    processor = tiny_processor(text_padding="max_length")
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, MXMCLRProcessor)
    assert again.text_padding == "max_length"
    before, after = (p(images=IMAGES, text=TEXTS, instance_ids=["a", "b", "c"]) for p in (processor, again))
    assert after["input_ids"].shape[1] == 16
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_siglip_texts_are_padded_as_they_were_in_training(tmp_path):
    SiglipProcessor(SiglipImageProcessorPil(), tiny_tokenizer()).save_pretrained(tmp_path)
    assert MXMCLRProcessor.from_clip_pretrained(tmp_path).text_padding == "max_length"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"images": [picture()]},
            TypeError,
            r"`images` must hold a list of views per instance, got .*Image at place 0",
        ),
        ({"images": picture()}, TypeError, "`images` must hold a list of views per instance, got one Image; wrap"),
        ({"text": "red"}, TypeError, "`text` must hold a list of captions per instance, got one str; wrap"),
        ({"text": ["red"]}, TypeError, r"got str at place 0; wrap the captions of one instance as `\[captions\]`"),
        ({"text": [["red", 3]]}, TypeError, "`text` holds int in the fold at place 0"),
        ({"images": [[None]]}, TypeError, "`images` holds NoneType in the fold at place 0"),
        ({}, ValueError, "`images` or `text` must be given"),
        (
            {"images": IMAGES, "text": TEXTS[:2]},
            ValueError,
            "must speak of the same instances, got {'images': 3, 'text': 2}",
        ),
        ({"text": TEXTS, "instance_ids": ["a"]}, ValueError, "must speak of the same instances"),
        ({"images": [[]], "text": [[]], "instance_ids": ["a"]}, ValueError, "instance 'a' has neither"),
        ({"text": [["red"], ["blue", " "]], "instance_ids": ["a", "b"]}, ValueError, "' ' of instance 'b' has none"),
        ({"text": [["red", ""]]}, ValueError, "'' of instance 0 has none; drop it"),
    ],
)
def test_bad_folds_name_the_culprit(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_processor()(**arguments)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="`text_padding` must be one of"):
        tiny_processor(text_padding="left")
