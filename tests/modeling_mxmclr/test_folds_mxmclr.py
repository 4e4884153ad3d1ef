import torch

from modeling_mxmclr.folds_mxmclr import (
    SMALLEST_GLOBAL_ID,
    find_instances,
    flatten_folds,
    hash_instance_id,
    instance_embeddings,
    pool_by_instance,
    positive_mask,
    unit_norm,
)


def test_ids_hash_to_63_bits_that_no_version_of_ours_may_change():
    assert hash_instance_id("chair-1042") == 6825499317592751228
    hashes = {hash_instance_id(f"instance {number}") for number in range(10_000)}
    assert len(hashes) == 10_000
    assert all(SMALLEST_GLOBAL_ID <= value < 2**63 for value in hashes)


def test_folds_flatten_instance_major_and_empty_ones_vanish():
    observations, ids = flatten_folds([[], ["a"], ["b", "c"], []], [4, 5, 2**62, 7])
    assert observations == ["a", "b", "c"]
    assert ids.tolist() == [5, 2**62, 2**62]
    assert flatten_folds([], [])[1].dtype == torch.int64


def test_positives_are_pairs_of_one_instance():
    mask = positive_mask(torch.tensor([1, 2]), torch.tensor([2, 1, 2]))
    assert mask.tolist() == [[False, True, False], [True, False, True]]


def test_instances_of_both_sides_are_numbered_alike():
    instances = find_instances(torch.tensor([30, 10, 30]), torch.tensor([20, 30]))
    assert instances.image_index.tolist() == [2, 0, 2]
    assert instances.text_index.tolist() == [1, 2]
    assert instances.image_fold_sizes.tolist() == [1, 0, 2]
    assert instances.in_both.tolist() == [False, False, True]


def test_pooling_is_the_mean_of_each_fold():
    embeds, ids = torch.arange(8.0).reshape(4, 2), torch.tensor([9, 3, 9, 3])
    means, instance_ids = pool_by_instance(embeds, ids)
    assert instance_ids.tolist() == [3, 9]
    torch.testing.assert_close(means, torch.stack([embeds[[1, 3]].mean(dim=0), embeds[[0, 2]].mean(dim=0)]))


def test_pooling_lets_every_observation_learn():
    embeds = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([1, 0, 1, 2])
    for pooling in ("mean", "max", "attention"):
        assert torch.autograd.gradcheck(lambda rows, how=pooling: instance_embeddings(rows, ids, how), embeds)


def test_a_zero_row_has_no_direction_and_no_nan():
    rows = torch.zeros(1, 3, requires_grad=True)
    unit_norm(rows).sum().backward()
    assert rows.grad.isfinite().all()
