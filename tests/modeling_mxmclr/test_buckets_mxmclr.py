"""Texts in buckets: the same vectors, losses and gradients as in one call, on any number of ranks."""

from itertools import combinations

import numpy as np
import pytest
import torch

from modeling_mxmclr import buckets_mxmclr
from modeling_mxmclr.buckets_mxmclr import can_be_cut, cheapest_ends, plan_buckets, text_lengths
from tests.references.bucket_jobs import ddp_in_buckets, fsdp_in_buckets
from tests.references.gloo_pool import GlooPool
from tests.references.rank_jobs import whole_batch
from tests.references.tiny import TEXT_TOWERS, tiny_batch, tiny_model

# Its pooler reads the last column, padding or not.
CUTTABLE = sorted(set(TEXT_TOWERS) - {"siglip_text_model"})


@pytest.fixture(autouse=True)
def _free_calls(monkeypatch):
    monkeypatch.setitem(buckets_mxmclr.CALL_TOKENS, "cpu", 0)  # so that tiny batches are split at all


def ragged_texts(seed=0, num_texts=12, longest=9):
    """Tokens of texts of which some are equal."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (num_texts,), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(4, 14, (num_texts, longest), generator=generator)
    ids[:, 0] = 1
    ids = (ids * mask).scatter(1, lengths[:, None] - 1, 2)
    order = torch.randint(num_texts, (num_texts + 4,), generator=generator)
    return {"input_ids": ids[order], "attention_mask": mask[order]}


def cost_of(lengths, ends):
    starts = [0, *ends[:-1]]
    return sum((end - start) * lengths[end - 1] for start, end in zip(starts, ends, strict=True))


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_split_pads_less(num_buckets, seed):
    lengths = torch.randint(1, 9, (9,), generator=torch.Generator().manual_seed(seed)).sort().values
    ends = cheapest_ends(lengths, num_buckets, call_tokens=0)
    others = [
        cost_of(lengths.tolist(), [*inner, 9]) for k in range(num_buckets) for inner in combinations(range(1, 9), k)
    ]
    assert ends[-1] == 9
    assert len(ends) <= num_buckets
    assert cost_of(lengths.tolist(), ends) == min(others)


def test_a_call_costs_so_few_texts_share_one():
    assert cheapest_ends(torch.tensor([2, 9]), 4, call_tokens=64) == [2]
    assert cheapest_ends(torch.tensor([2] * 50 + [9]), 4, call_tokens=64) == [50, 51]
    assert cheapest_ends(torch.zeros(0, dtype=torch.int64), 4) == []


def test_lengths_reach_to_the_last_real_token():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]])
    assert text_lengths(mask).tolist() == [2, 4, 1, 3]
    assert text_lengths(mask[:0, :0]).tolist() == []


@pytest.mark.parametrize("num_buckets", [1, 2, 5])
def test_every_text_has_one_place_and_equal_texts_the_same(num_buckets):
    tokens = ragged_texts()
    buckets = plan_buckets(tokens["input_ids"], tokens["attention_mask"], num_buckets)
    rows = torch.cat(buckets.rows)
    torch.testing.assert_close(tokens["input_ids"][rows[buckets.places]], tokens["input_ids"])
    assert len(rows) == len(tokens["input_ids"].unique(dim=0)) < len(tokens["input_ids"])
    assert buckets.lengths == sorted(buckets.lengths)
    for bucket, length in zip(buckets.rows, buckets.lengths, strict=True):
        assert text_lengths(tokens["attention_mask"][bucket]).max() == length


@pytest.mark.parametrize("tower", CUTTABLE)
def test_a_tower_gives_the_same_vectors_in_any_buckets(tower):
    model, tokens = tiny_model(tower), ragged_texts()
    plain = model.get_text_features(**tokens)
    for num_buckets in (2, 3, 20):
        model.text_buckets = num_buckets
        torch.testing.assert_close(model.get_text_features(**tokens), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_poolings_of_tokens_see_no_padding(pooling):
    model, tokens = tiny_model(text_pooling=pooling), ragged_texts(1)
    plain = model.get_text_tower_output(**tokens)
    model.text_buckets = 3
    torch.testing.assert_close(model.get_text_tower_output(**tokens), plain, rtol=1e-5, atol=1e-5)


def repeated_batch(dtype):
    """`tiny_batch` with every caption drawn twice, by different instances."""
    batch = tiny_batch(dtype)
    for name in ("input_ids", "attention_mask"):
        batch[name] = torch.cat([batch[name], batch[name].flip(0)])
    batch["text_group_ids"] = torch.cat([batch["text_group_ids"], batch["text_group_ids"]])
    return batch


@pytest.mark.parametrize("objective", ["mfh", "siglip"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_one_call(objective, checkpointing):
    batch, found = repeated_batch(torch.float64), {}
    for num_buckets in (1, 3):
        model = tiny_model(objective=objective).double()
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        model.text_buckets = num_buckets
        output = model(**batch)
        output.loss.backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        found[num_buckets] = [output.loss.detach(), *gradients]
        assert (output.text_model_output is None) == (num_buckets > 1)
    torch.testing.assert_close(found[3], found[1], rtol=1e-10, atol=1e-10)


def test_keywords_of_tokens_are_cut_with_them():
    model, tokens = tiny_model(), ragged_texts()
    tokens["token_type_ids"] = (torch.arange(9) > 3).long().expand(16, 9)
    tokens["position_ids"] = torch.arange(9).flip(0).expand(16, 9)
    plain = model.get_text_features(**tokens)
    model.text_buckets = 3
    torch.testing.assert_close(model.get_text_features(**tokens), plain, rtol=1e-5, atol=1e-5)


def test_texts_that_differ_in_a_keyword_alone_are_kept_apart():
    model = tiny_model()
    model.text_buckets = 2
    ids = torch.tensor([[1, 5, 2], [1, 5, 2]])
    types = torch.tensor([[0, 0, 0], [0, 1, 0]])
    one, other = model.get_text_features(ids, torch.ones_like(ids), token_type_ids=types)
    assert (one - other).abs().max() > 1e-4


def test_what_is_not_columns_of_tokens_goes_through_in_one_call():
    model, tokens = tiny_model(), ragged_texts()
    model.text_buckets = 3
    output = model(**tokens, output_hidden_states=True)
    assert len(output.text_model_output.hidden_states) == 3
    assert not can_be_cut({"input_ids": tokens["input_ids"]})
    assert model(input_ids=tokens["input_ids"]).text_model_output is not None


def test_no_text_is_no_vector_and_still_reaches_the_tower():
    model, tokens = tiny_model(), {name: rows[:0] for name, rows in ragged_texts().items()}
    model.text_buckets = 3
    pooled = model.get_text_tower_output(**tokens)
    assert pooled.shape == (0, 32)
    pooled.sum().backward()
    assert model.text_model.embeddings.word_embeddings.weight.grad is not None


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(2)
    yield pool
    pool.close()


UNEVEN = {"images": [[0], [1, 2, 3, 4, 5, 6]], "texts": [[0, 1, 2, 3, 4], [5]]}
WITHOUT_TEXT = {"images": [[0, 1, 2, 3], [4, 5, 6]], "texts": [[0, 1, 2, 3, 4, 5], []]}


def assert_true_gradient(found):
    loss, gradients = whole_batch(torch.float64, {})
    assert found[0] == pytest.approx(loss, abs=1e-10)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[1][name], gradient, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("shares", [UNEVEN, WITHOUT_TEXT], ids=["uneven", "a rank without text"])
def test_ranks_of_ddp_reach_the_gradients_of_one_process(pool, shares):
    for found in pool.run(ddp_in_buckets, shares):
        assert_true_gradient(found)


@pytest.mark.parametrize("shares", [UNEVEN, WITHOUT_TEXT], ids=["uneven", "a rank without text"])
def test_ranks_of_fsdp_make_as_many_calls_and_reach_the_gradients_of_one_process(pool, shares):
    for found in pool.run(fsdp_in_buckets, shares):
        assert_true_gradient(found)
        assert found[2] == 3
