from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from datasets_scripts.rendering import render_views
from datasets_scripts.shape_geometry import build_mesh
from datasets_scripts.shape_specs import ALL_FINISHES, DRAW, Chair, Table
from datasets_scripts.shapes import Shapes, ShapesConfig, build_row, draw_shape

TINY = {"num_shapes": 12, "image_size": 16, "num_views": 3}


def rows_of(splits):
    return {
        (split, row["instance_id"]): ([np.asarray(view).tobytes() for view in row["images"]], row["captions"])
        for split, rows in splits.items()
        for row in rows
    }


def build(cache_dir, num_proc=None, **settings):
    builder = Shapes(cache_dir=str(cache_dir), **(TINY | settings))
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset()


def test_one_process_two_processes_and_streaming_give_the_same_rows(tmp_path):
    one, two = build(tmp_path / "one"), build(tmp_path / "two", num_proc=2)
    streamed = Shapes(cache_dir=str(tmp_path / "three"), **TINY).as_streaming_dataset()
    assert rows_of(one) == rows_of(two) == rows_of(streamed)
    assert sum(len(rows) for rows in one.values()) == 12


def test_rows_have_the_schema_and_carry_their_images(tmp_path):
    row = build(tmp_path)["train"].with_format("arrow")[0].to_pylist()[0]
    assert list(row) == ["instance_id", "images", "captions", "category"]
    assert all(image["bytes"].startswith(b"\x89PNG") for image in row["images"])
    assert row["category"] in ("chair", "table")


def test_every_setting_changes_the_cache_and_the_rows(tmp_path):
    settings = [{}, {"seed": 1}, {"num_shapes": 13}, {"image_size": 17}, {"num_views": 4}, {"kinds": ("primitive",)}]
    builders = [Shapes(cache_dir=str(tmp_path), **(TINY | setting)) for setting in settings]
    assert len({builder.cache_dir for builder in builders}) == len(settings)
    rows = [build_row(builder.config, 0) for builder in builders]
    assert rows[0] != rows[1]
    assert rows[0] == rows[2]
    assert rows[0]["captions"] == rows[3]["captions"] == rows[4]["captions"] != rows[5]["captions"]


@pytest.mark.parametrize(
    ("name", "number", "pixels"), [("small", 1500, 64), ("full", 15_000, 128), ("primitives", 1500, 64)]
)
def test_the_configurations_are_as_announced(tmp_path, name, number, pixels):
    builder = Shapes(config_name=name, cache_dir=str(tmp_path))
    generators = {made.name: made.gen_kwargs["numbers"] for made in builder._split_generators(None)}
    assert (builder.config.num_shapes, builder.config.image_size, builder.config.num_views) == (number, pixels, 12)
    shares = [len(generators[split]) / number for split in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.025)
    assert sorted(chain(*generators.values())) == list(range(number))


def test_full_begins_with_the_shapes_of_small():
    small, full = ShapesConfig(name="small"), ShapesConfig(name="full", image_size=128)
    assert [draw_shape(small, number)[0] for number in range(20)] == [
        draw_shape(full, number)[0] for number in range(20)
    ]


def share_of(views, finish):
    """The share of pixels with the hue and about the lightness of a finish."""
    pixels, wanted = views.reshape(-1, 3).astype(float), np.array(ALL_FINISHES[finish].rgb, dtype=float)
    near = np.abs(pixels / pixels.sum(axis=1, keepdims=True) - wanted / wanted.sum()).max(axis=1) < 0.06
    return (near & (pixels.min(axis=1) < 250)).mean()


@pytest.mark.parametrize("kind", ["chair", "table"])
def test_the_colours_that_captions_name_can_be_seen(kind):
    for number in range(25):
        rng = np.random.default_rng(number)
        shape = DRAW[kind](rng)
        views = render_views(build_mesh(shape, rng), num_views=12, size=64)
        finishes = {shape.leg_finish, shape.seat_finish if kind == "chair" else shape.top_finish}
        assert all(share_of(views, finish) > 0.004 for finish in finishes), shape


CHAIR = Chair("red", "red", "blue", "square", "regular", "solid", "tall", "legs", "regular", arms=False)
TABLE = Table("red", "blue", "square", thick=False, base="legs", height="regular", drawers=0, shelf=False)
CHANGES = [
    (CHAIR, {"back": "none"}), (CHAIR, {"back": "slatted"}), (CHAIR, {"back": "ladder"}), (CHAIR, {"arms": True}),
    (CHAIR, {"back_height": "low"}), (CHAIR, {"seat_shape": "round"}), (CHAIR, {"width": "wide"}),
    (CHAIR, {"width": "narrow"}), (CHAIR, {"base": "pedestal"}), (CHAIR, {"base": "panels"}),
    (CHAIR, {"leg_height": "tall"}), (CHAIR, {"leg_height": "short"}), (CHAIR, {"back_finish": "green"}),
    (TABLE, {"top_shape": "round"}), (TABLE, {"top_shape": "rectangular"}), (TABLE, {"thick": True}),
    (TABLE, {"base": "pedestal"}), (TABLE, {"base": "panels"}), (TABLE, {"height": "low"}),
    (TABLE, {"height": "tall"}), (TABLE, {"drawers": 2}), (TABLE, {"shelf": True}),
    (TABLE, {"top_finish": "glass"}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "change"), CHANGES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_every_attribute_shows_in_the_views(shape, change):
    views, others = (
        render_views(build_mesh(made, np.random.default_rng(0)), num_views=12, size=64).astype(int)
        for made in (shape, replace(shape, **change))
    )
    assert (np.abs(views - others).max(axis=3) > 40).mean() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_shapes": 0}, "`num_shapes` must be a whole number within 1 and .*, got 0"),
        ({"image_size": 1e9}, "`image_size` must be a whole number"),
        ({"num_views": "12"}, "`num_views` must be a whole number within 1 and .*, got '12'"),
        ({"seed": -1}, "`seed` must be a whole number from 0, got -1"),
        (
            {"kinds": ("sofa",)},
            r"`kinds` must be a list of some of \['chair', 'primitive', 'table'\], got \('sofa',\)",
        ),
        ({"colour": "red"}, "doesn't have a 'colour' key"),
        ({"config_name": "tiny"}, "Available: .*small"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Shapes(cache_dir=str(tmp_path), **settings)
