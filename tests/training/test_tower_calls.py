"""Buckets where padding doesn't count, and a bounded number of compilations whatever the batches' sizes."""

import pytest
import torch

from modeling_mxmclr import buckets_mxmclr
from tests.references.tiny import tiny_model, tiny_processor
from training import tower_calls
from training.tower_calls import compile_towers, ignores_padding, share_texts


@pytest.mark.parametrize("tower", ["bert", "clip_text_model", "t5"])
def test_texts_share_calls_where_padding_does_not_count(tower):
    model = tiny_model(tower).train()
    share_texts(model, tiny_processor(), 3)
    assert model.text_buckets == 3
    assert model.text_model.training


def test_a_tower_that_reads_the_last_column_keeps_its_padding():
    model = tiny_model("siglip_text_model")
    share_texts(model, tiny_processor(), 3)
    assert model.text_buckets == 1


def test_texts_without_a_mask_keep_their_padding():
    processor = tiny_processor()
    processor.tokenizer.model_input_names = ["input_ids"]
    assert not ignores_padding(tiny_model(), processor)


def ragged_step(model, step):
    """Forward and backward of a batch whose every size depends on the step."""
    num_images, num_texts, length = 2 + step % 5, 3 + 7 * step % 6, 3 + step % 4
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(4, 14, (num_texts, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 2:] = 0
    batch = {"pixel_values": torch.randn(num_images, 3, 32, 32, generator=generator), "input_ids": ids}
    batch |= {"image_group_ids": torch.arange(num_images), "text_group_ids": torch.arange(num_texts)}
    output = model(**batch, attention_mask=mask)
    output.loss.backward()
    return output


def test_ragged_batches_are_compiled_a_few_times_and_give_the_same(monkeypatch):
    monkeypatch.setitem(buckets_mxmclr.CALL_TOKENS, "cpu", 0)
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain, compiled = tiny_model(), tiny_model()
    plain.text_buckets = compiled.text_buckets = 3
    compile_towers(compiled, backend=counting)
    for step in range(12):
        expected, found = ragged_step(plain, step), ragged_step(compiled, step)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
        if step == 5:
            so_far = len(graphs)
    gradients = [[weight.grad for weight in model.parameters()] for model in (plain, compiled)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert 2 <= len(graphs) <= 6
    assert len(graphs) == so_far
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(tower_calls.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler on a CPU, found none of"):
        compile_towers(tiny_model())
