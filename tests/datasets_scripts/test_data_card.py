from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import DatasetInfo
from huggingface_hub import DatasetCard

from datasets_scripts.data_card import COLOURS, Built, bars_of, draw_histograms, hub_license, render_card
from datasets_scripts.parquet_shards import FoldSizes
from datasets_scripts.schema import FEATURES


def facts(tmp_path: Path, **changes):
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(b"x" * 2_000_000)
    values = {
        "dataset": "raw/mugs",
        "config": None,
        "settings": {"a": "```\n# b"},
        "info": DatasetInfo(),
        "features": FEATURES,
        "license": None,
        "paths": {"train": [path]},
    }
    return Built(**(values | changes))


SIZES = {"train": FoldSizes(images=Counter({2: 3, 0: 1}), captions=Counter({5: 4}))}


def test_sizes_are_counted_from_the_folds(tmp_path):
    card = render_card(facts(tmp_path), SIZES)
    assert "| train | 4 | 6 | 20 | 2.0 |" in card
    assert "# mugs\n" in card


def test_several_licences_are_all_there_and_unknown_ones_are_other(tmp_path):
    card = DatasetCard(render_card(facts(tmp_path, license="MIT, Unicode-3.0"), SIZES))
    assert card.data.license == ["mit", "other"]
    assert "MIT, Unicode-3.0." in card.text
    assert hub_license("CC-BY-SA-4.0") == "cc-by-sa-4.0"


def test_without_a_licence_it_says_so(tmp_path):
    card = DatasetCard(render_card(facts(tmp_path), SIZES))
    assert card.data.license is None
    assert "No licence is stated" in card.text


def test_paths_of_this_machine_stay_here(tmp_path):
    card = render_card(facts(tmp_path, dataset=str(tmp_path), settings={"data_dir": str(tmp_path)}), SIZES)
    assert str(tmp_path.parent) not in card
    assert f'"data_dir": "{tmp_path.name}"' in card


def test_settings_cannot_end_their_block(tmp_path):
    assert "\n# b" not in render_card(facts(tmp_path), SIZES)


@pytest.mark.parametrize(
    ("counts", "bars"),
    [
        ({"train": Counter({1: 2, 3: 4}), "test": Counter({3: 1})}, [("1", [2, 0]), ("2", [0, 0]), ("3", [4, 1])]),
        ({"train": Counter({0: 1, 47: 2})}, [(f"{n}+", [(n == 0) + 2 * (n == 46)]) for n in range(0, 48, 2)]),
        ({"train": Counter()}, []),
    ],
)
def test_every_fold_size_has_its_bar_or_shares_one(counts, bars):
    assert bars_of(counts) == bars


def test_histograms_show_every_split_in_its_colour():
    both = SIZES | {"test": FoldSizes(images=Counter({1: 3}), captions=Counter({1: 3}))}
    pixels = np.asarray(draw_histograms(both)).reshape(-1, 3)
    for colour in COLOURS[:2]:
        rgb = tuple(bytes.fromhex(colour[1:]))
        assert (pixels == rgb).all(axis=1).sum() > 500
