"""A checkpoint as a SentenceTransformer: the same embeddings, through its whole interface."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from transformers import AutoModel, BertConfig, BertModel

from modeling_mxmclr.sentence_transformers_mxmclr import MXMCLRModule, add_sentence_transformers_files, read_fold
from tests.references.tiny import BERT, picture, tiny_model, tiny_processor

VIEWS = [picture(1), picture(2), picture(3)]
LOAD = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path = [entry for entry in sys.path if entry not in ("", {repo!r})]
import importlib.util
assert importlib.util.find_spec("modeling_mxmclr") is None
import numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({folder!r}, trust_remote_code=True, device="cpu")
numpy.save({result!r}, model.encode(["red chair", ["red chair", "a table"]]))
"""


@pytest.fixture
def encoder():
    return SentenceTransformer(modules=[MXMCLRModule(tiny_model(), tiny_processor())], device="cpu")


def embeddings_of_the_model(model, processor, images=None, text=None):
    """One row an instance, by the calls that the README shows."""
    batch = processor(images=images, text=text)
    with torch.no_grad():
        if images is not None:
            rows, ids = model.get_image_features(batch.pixel_values), batch.image_group_ids
        else:
            rows, ids = model.get_text_features(batch.input_ids, batch.attention_mask), batch.text_group_ids
        return model.get_instance_features(rows, ids).numpy()


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_every_kind_of_input_gets_the_embedding_of_the_model(pooling):
    model, processor = tiny_model(view_pooling=pooling), tiny_processor()
    encoder = SentenceTransformer(modules=[MXMCLRModule(model, processor)], device="cpu")
    inputs = ["a red chair", VIEWS[0], VIEWS[1:], ["a table", "round table", "a"], {"image": VIEWS}, {"text": "tall"}]
    texts = embeddings_of_the_model(
        model, processor, text=[["a red chair"], ["a table", "round table", "a"], ["tall"]]
    )
    images = embeddings_of_the_model(model, processor, images=[VIEWS[:1], VIEWS[1:], VIEWS])
    expected = [texts[0], images[0], images[1], texts[1], images[2], texts[2]]
    np.testing.assert_allclose(encoder.encode(inputs), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(inputs, batch_size=2), expected, rtol=0, atol=1e-6)
    for one, row in zip(inputs, expected, strict=True):
        np.testing.assert_allclose(encoder.encode([one])[0], row, rtol=0, atol=1e-6)


def test_one_caption_and_one_image_need_no_list(encoder, tmp_path):
    picture(1).save(tmp_path / "view.png")
    assert encoder.encode("a red chair").shape == encoder.encode(VIEWS[0]).shape == (16,)
    np.testing.assert_array_equal(encoder.encode(str(tmp_path / "view.png")), encoder.encode(VIEWS[0]))
    np.testing.assert_array_equal(encoder.encode(np.asarray(VIEWS[0])), encoder.encode(VIEWS[0]))


def test_a_saved_encoder_loads_again_and_is_a_checkpoint_of_ours(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path / "saved"))
    inputs = ["a red chair", VIEWS]
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.encode(inputs), encoder.encode(inputs))
    assert type(AutoModel.from_pretrained(tmp_path / "saved")).__name__ == "MXMCLRModel"
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_a_checkpoint_with_its_file_loads_where_the_package_is_not_installed(encoder, tmp_path):
    folder = tmp_path / "run"
    encoder[0].save(str(folder))
    add_sentence_transformers_files(folder)
    assert json.loads((folder / "modules.json").read_text())[0]["type"] == "sentence_transformers_mxmclr.MXMCLRModule"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    code = LOAD.format(repo=os.getcwd(), folder=str(folder), result=str(tmp_path / "rows.npy"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = encoder.encode(["red chair", ["red chair", "a table"]])
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), expected, rtol=0, atol=1e-6)


def test_similarity_search_and_evaluators_work(encoder):
    gallery = {"first": VIEWS[0], "second": VIEWS[1]}
    rows = encoder.encode(list(gallery.values()), convert_to_tensor=True)
    queries = encoder.encode_query(["a red chair", "a table"], convert_to_tensor=True)
    similarity = encoder.similarity(queries, rows)
    torch.testing.assert_close(similarity, queries @ rows.T)
    best = [hits[0]["corpus_id"] for hits in util.semantic_search(queries, rows, top_k=1)]
    assert best == similarity.argmax(dim=1).tolist()
    found = list(gallery)[best[0]]
    evaluator = InformationRetrievalEvaluator({"q": "a red chair"}, gallery, {"q": {found}}, name="views")
    assert encoder.evaluate(evaluator)["views_cosine_accuracy@1"] == 1


def test_a_prompt_stands_before_captions_and_a_length_cuts_them(encoder):
    np.testing.assert_array_equal(encoder.encode(["chair"], prompt="red "), encoder.encode(["red chair"]))
    encoder.max_seq_length = 3
    np.testing.assert_array_equal(encoder.encode(["red chair"]), encoder.encode(["red table"]))
    assert encoder.get_embedding_dimension() == 16


def test_gradients_reach_both_towers_through_the_module(encoder):
    features = encoder.preprocess(["a red chair", VIEWS])
    encoder(features)["sentence_embedding"][:, 0].sum().backward()
    model = encoder[0].model
    assert model.text_projection.weight.grad.abs().sum() > 0
    assert model.visual_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (["a chair", VIEWS[0]], "must hold images or captions, got 1 and 1"),
        ([], "must hold images or captions, got 0 and 0"),
        ({"image": VIEWS, "text": "a chair"}, r"must have `image` or `text`, got \['image', 'text'\]"),
        ({"role": "user", "content": "a chair"}, "must have `image` or `text`"),
        ("https://example.com/chair.png", "path of a file, got 'https://example.com/chair.png'; open it first"),
        (7, "path of a file, got int"),
    ],
)
def test_an_input_that_is_no_fold_is_refused(encoder, one, message):
    with pytest.raises(ValueError, match=message):
        read_fold(one)


def test_other_models_and_backends_and_pickles_are_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="`model` must be an MXMCLRModel, got a BertModel"):
        MXMCLRModule(BertModel(BertConfig(**BERT)), tiny_processor())
    with pytest.raises(ValueError, match="`backend` must be 'torch', got 'onnx'"):
        MXMCLRModule.load(str(tmp_path), backend="onnx")
    with pytest.raises(ValueError, match="`safe_serialization` must stay True"):
        encoder[0].save(str(tmp_path), safe_serialization=False)
