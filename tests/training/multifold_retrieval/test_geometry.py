from math import exp, log

import pytest
import torch
from torch import Tensor

from training.multifold_retrieval import geometry as geometry_module
from training.multifold_retrieval.geometry import (
    alignment,
    effective_rank,
    geometry,
    hubness,
    modality_gap,
    skewness,
    uniformity,
    within_instance_spread,
)

IMAGE_IDS, TEXT_IDS = torch.tensor([7, 7, 7, 9, 4, 4]), torch.tensor([4, 7, 7, 5, 9])


def unit_rows(num_rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    rows = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def squared_distance(left: Tensor, right: Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(left.tolist(), right.tolist(), strict=True))


def test_modality_gap_is_the_distance_of_the_means():
    images, texts = unit_rows(6), unit_rows(5, seed=1)
    means = [[sum(column) / len(column) for column in rows.T.tolist()] for rows in (images, texts)]
    expected = sum((a - b) ** 2 for a, b in zip(*means, strict=True)) ** 0.5
    assert modality_gap(images, texts) == pytest.approx(expected, rel=1e-6)


def test_modality_gap_is_zero_between_a_modality_and_itself_and_two_between_poles():
    rows, pole = unit_rows(6), unit_rows(1).repeat(4, 1)
    assert modality_gap(rows, rows[torch.randperm(6, generator=torch.Generator().manual_seed(0))]) < 1e-7
    assert modality_gap(pole, -pole) == pytest.approx(2)


def test_alignment_is_the_mean_over_all_pairs_of_an_instance():
    images, texts = unit_rows(6), unit_rows(5, seed=1)
    distances = [
        squared_distance(image, text)
        for image, image_id in zip(images, IMAGE_IDS, strict=True)
        for text, text_id in zip(texts, TEXT_IDS, strict=True)
        if image_id == text_id
    ]
    assert len(distances) == 3 * 2 + 1 + 2
    assert alignment(images, texts, IMAGE_IDS, TEXT_IDS) == pytest.approx(sum(distances) / len(distances), rel=1e-6)


def test_alignment_is_zero_where_each_instance_is_one_point():
    centres = unit_rows(10)
    assert alignment(centres[IMAGE_IDS], centres[TEXT_IDS], IMAGE_IDS, TEXT_IDS) == pytest.approx(0, abs=1e-6)
    assert alignment(centres[IMAGE_IDS], -centres[TEXT_IDS], IMAGE_IDS, TEXT_IDS) == pytest.approx(4)


def test_uniformity_is_the_log_of_the_mean_over_pairs():
    rows = unit_rows(9)
    kernel = [exp(-2 * squared_distance(rows[i], rows[j])) for i in range(9) for j in range(i)]
    assert uniformity(rows) == pytest.approx(log(sum(kernel) / len(kernel)), rel=1e-6)


def test_uniformity_of_blocks_is_that_of_the_whole(monkeypatch):
    rows = unit_rows(50)
    expected = uniformity(rows)
    monkeypatch.setattr(geometry_module, "ROWS_AT_ONCE", 7)
    assert uniformity(rows) == pytest.approx(expected, rel=1e-6)


def test_uniformity_is_zero_of_one_point_and_minus_four_of_orthogonal_rows():
    assert uniformity(unit_rows(1).repeat(5, 1)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(20)) == pytest.approx(-4)


def test_uniformity_of_a_sample_is_near_that_of_all_and_depends_on_its_seed_alone():
    rows = unit_rows(3000)
    assert uniformity(rows, sample=1000) == pytest.approx(uniformity(rows), abs=0.02)
    assert uniformity(rows, sample=1000) == uniformity(rows, sample=1000)
    assert uniformity(rows, sample=1000) != uniformity(rows, sample=1000, seed=1)


def test_within_instance_spread_is_the_mean_over_instances_of_the_mean_over_pairs():
    rows = unit_rows(6)
    folds = [rows[group_id == IMAGE_IDS] for group_id in (7, 4)]  # instance 9 has one observation
    spreads = []
    for fold in folds:
        pairs = [squared_distance(fold[i], fold[j]) for i in range(len(fold)) for j in range(i)]
        spreads.append(sum(pairs) / len(pairs))
    assert within_instance_spread(rows, IMAGE_IDS) == pytest.approx(sum(spreads) / 2, rel=1e-6)


def test_within_instance_spread_is_zero_of_equal_observations_and_independent_of_fold_sizes():
    assert within_instance_spread(unit_rows(10)[IMAGE_IDS], IMAGE_IDS) == pytest.approx(0, abs=1e-6)
    rows = unit_rows(40_000, dim=64)
    pairs = within_instance_spread(rows, torch.arange(40_000) // 2)
    eights = within_instance_spread(rows, torch.arange(40_000) // 8)
    assert pairs == pytest.approx(2, abs=0.01)
    assert eights == pytest.approx(2, abs=0.01)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    rows = unit_rows(30, dim=6)
    values = torch.linalg.eigvalsh(rows.double().T @ rows.double()).sqrt()
    shares = [value / sum(values.tolist()) for value in values.tolist()]
    assert effective_rank(rows) == pytest.approx(exp(-sum(share * log(share) for share in shares)))


def test_effective_rank_is_the_dimension_of_orthonormal_rows_and_one_of_a_line():
    assert effective_rank(torch.eye(12)) == pytest.approx(12)
    assert effective_rank(torch.eye(12)[:5]) == pytest.approx(5)
    assert effective_rank(unit_rows(1).repeat(9, 1)) == pytest.approx(1, abs=1e-5)


def test_effective_rank_of_blocks_and_of_rotated_rows_is_the_same(monkeypatch):
    rows = unit_rows(50, dim=6) * torch.tensor([1.0, 1, 1, 0.1, 0.1, 0.01])
    expected = effective_rank(rows)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    assert effective_rank(rows @ rotation) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(geometry_module, "ROWS_AT_ONCE", 7)
    assert effective_rank(rows) == pytest.approx(expected, rel=1e-9)


def test_skewness_is_the_third_moment_over_the_cube_of_the_deviation():
    counts = torch.tensor([0, 1, 1, 2, 9])
    mean = sum(counts.tolist()) / 5
    second, third = (sum((count - mean) ** power for count in counts.tolist()) / 5 for power in (2, 3))
    assert skewness(counts) == pytest.approx(third / second**1.5)
    assert skewness(torch.tensor([3, 3, 3])) == 0


def test_hubness_is_the_skewness_of_how_often_an_item_is_near():
    queries, gallery = unit_rows(40), unit_rows(25, seed=1)
    counts = [0] * 25
    for scores in (queries @ gallery.T).tolist():
        for item in sorted(range(25), key=lambda item: -scores[item])[:3]:
            counts[item] += 1
    assert hubness(queries, gallery, k=3) == pytest.approx(skewness(torch.tensor(counts)))


def test_hubness_is_zero_where_each_item_has_one_query_and_high_with_a_hub():
    assert hubness(torch.eye(10), torch.eye(10), k=1) == 0
    hub = torch.nn.functional.normalize(torch.eye(10) + 0.6, dim=1)
    gallery = torch.cat([torch.full((1, 10), 10**-0.5), -torch.eye(10)])
    assert hubness(hub, gallery, k=1) == pytest.approx(skewness(torch.tensor([10] + [0] * 10)))


def test_geometry_is_the_figures_of_this_module():
    images, texts = unit_rows(6), unit_rows(5, seed=1)
    figures = geometry(images, IMAGE_IDS, texts, TEXT_IDS, hub_k=2)
    assert figures["modality_gap"] == modality_gap(images, texts)
    assert figures["alignment"] == alignment(images, texts, IMAGE_IDS, TEXT_IDS)
    assert figures["uniformity_text"] == uniformity(texts)
    assert figures["within_instance_spread_text"] == within_instance_spread(texts, TEXT_IDS)
    assert figures["effective_rank_image"] == effective_rank(images)
    means = torch.stack([images[group_id == IMAGE_IDS].mean(dim=0) for group_id in (4, 7, 9)])
    instances = torch.nn.functional.normalize(means, dim=1)
    assert figures["hubness_text_to_instance"] == hubness(texts, instances, k=2)
    assert figures["hubness_instance_to_text"] == hubness(instances, texts, k=2)


def test_order_of_observations_does_not_matter():
    images, texts = unit_rows(60, seed=2), unit_rows(50, seed=3)
    image_ids, text_ids = torch.arange(60) % 20, torch.arange(50) % 25
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    shuffled = geometry(images[order], image_ids[order], texts, text_ids)
    assert shuffled == pytest.approx(geometry(images, image_ids, texts, text_ids), abs=1e-6)


def test_half_types_give_the_figures_of_their_values():
    images, texts = unit_rows(6).bfloat16(), unit_rows(5, seed=1).bfloat16()
    expected = geometry(images.float(), IMAGE_IDS, texts.float(), TEXT_IDS)
    assert geometry(images, IMAGE_IDS, texts, TEXT_IDS) == pytest.approx(expected, abs=1e-6)


def test_figures_that_are_undefined_are_absent():
    one, other = torch.tensor([7]), torch.tensor([8])
    assert geometry(unit_rows(1), one, unit_rows(1), other).keys() == {
        "modality_gap",
        "effective_rank_image",
        "effective_rank_text",
        "hubness_text_to_instance",
        "hubness_instance_to_text",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry(unit_rows(6) * 2, IMAGE_IDS, unit_rows(5), TEXT_IDS), "`image_embeds` must have unit norm"),
        (lambda: geometry(unit_rows(6), IMAGE_IDS, unit_rows(5), TEXT_IDS[:3]), "`text_group_ids` has shape"),
        (lambda: uniformity(unit_rows(6), sample=1), "`sample` must be at least 2, got 1"),
        (
            lambda: geometry(unit_rows(6), IMAGE_IDS, unit_rows(5, dim=4), TEXT_IDS),
            "`image_embeds` and `text_embeds` must have one dimension, got 8 and 4",
        ),
        (lambda: hubness(unit_rows(6), unit_rows(5), k=6), "k"),
    ],
)
def test_bad_input_names_the_culprit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
