import base64
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from modeling_mxmclr.folds_mxmclr import Observations
from training.report_plots import (
    LONGEST_CURVE,
    FlatMap,
    RecallCurve,
    Similarities,
    curve_ks,
    flatten,
    map_figure,
    rank_edges,
    rank_figure,
    recall_figure,
    similarity_figure,
)

PREFIX = "data:image/svg+xml;base64,"


def svg(uri: str) -> str:
    """The drawing of a figure, which must be whole, and must refer to nothing outside of it."""
    assert uri.startswith(PREFIX)
    text = base64.b64decode(uri.removeprefix(PREFIX)).decode()
    for element in ElementTree.fromstring(text).iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,"))
    return text


def observations(num_images=40, num_texts=30, shift=0.0, seed=0) -> Observations:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_images + num_texts, 6, generator=generator)
    rows[num_images:, 0] += shift
    rows = torch.nn.functional.normalize(rows)
    ids = torch.arange(num_images + num_texts)
    return Observations(rows[:num_images], rows[num_images:], ids[:num_images], ids[num_images:])


CURVE = RecallCurve([1, 2, 5], [0.2, 0.3, 0.9], [0.1, 0.2, 0.8], [0.3, 0.4, 1.0], [0.1, 0.2, 0.5])
RANKS = torch.tensor([1.0, 1.0, 2.0, 7.5, 100.0])


def test_cut_offs_go_from_one_to_the_gallery():
    for size in (1, 2, 7, 374, LONGEST_CURVE):
        ks = curve_ks(size)
        assert (ks[0], ks[-1]) == (1, size)
        assert ks == sorted(set(ks))
        assert len(ks) < 40
    assert curve_ks(10**6)[-1] == LONGEST_CURVE


def test_every_rank_of_a_gallery_has_its_bin():
    for size in (1, 2, 3, 20, 1000):
        edges = rank_edges(size)
        assert edges[0] < 1
        assert edges[-1] > size
        assert all(edge % 1 == 0.5 for edge in edges)


def test_the_plane_is_that_of_a_singular_value_decomposition():
    sample = observations()
    flat = flatten(sample)
    rows = np.concatenate([sample.image_embeds.numpy(), sample.text_embeds.numpy()]).astype(np.float64)
    rows -= rows.mean(axis=0)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    expected = left[:, :2] * values[:2]
    found = torch.cat([flat.image, flat.text]).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(flat.explained, (values**2 / (values**2).sum())[:2], atol=1e-8)


def test_images_lie_on_the_side_of_larger_values():
    for seed in range(4):
        flat = flatten(observations(shift=3.0, seed=seed))
        assert (flat.image.mean(dim=0) >= flat.text.mean(dim=0)).all()


def test_the_gap_is_that_of_all_dimensions():
    sample = observations(shift=3.0)
    gap = math.dist(sample.image_embeds.mean(dim=0).tolist(), sample.text_embeds.mean(dim=0).tolist())
    assert flatten(sample).gap == pytest.approx(gap, abs=1e-6)


def test_embeddings_that_are_all_alike_have_a_map():
    sample = observations(2, 2)
    alike = sample._replace(
        image_embeds=sample.image_embeds[:1].repeat(2, 1), text_embeds=sample.image_embeds[:1].repeat(2, 1)
    )
    flat = flatten(alike)
    assert flat.explained == (0.0, 0.0)
    assert "svg" in svg(map_figure({"after": flat}))


def test_each_figure_is_one_drawing_that_needs_nothing_else():
    scores = Similarities(torch.rand(50), torch.rand(80) - 0.5, torch.rand(20))
    for uri in (
        recall_figure({"a": CURVE, "b": CURVE}),
        rank_figure({"a": RANKS, "b": RANKS[:1]}, {"a": 200, "b": 1}),
        similarity_figure({"a": scores, "b": scores}),
        map_figure({"before": flatten(observations()), "after": flatten(observations(seed=1))}),
    ):
        assert "<script" not in svg(uri)


def test_the_same_numbers_give_the_same_bytes():
    assert map_figure({"a": flatten(observations())}) == map_figure({"a": flatten(observations())})


def test_scores_without_negatives_can_be_drawn():
    none = torch.empty(0)
    assert svg(similarity_figure({"a": Similarities(torch.ones(3), none, none)}))


def test_many_points_do_not_make_a_large_map():
    points = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)).double()
    uri = map_figure({"a": FlatMap(points, points + 1, (0.5, 0.2), 1.0)})
    assert len(uri) < 300_000
