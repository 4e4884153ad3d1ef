import numpy as np
import pytest
from PIL import Image

from tests.references.tiny import picture
from training.augmentation import Augmentation, random_box


def test_nothing_happens_unless_asked_for():
    image = picture()
    assert Augmentation((8, 8))(image, np.random.default_rng(0)) is image


def test_crops_keep_proportions_and_their_share_of_the_area():
    for seed in range(100):
        left, upper, right, lower = random_box((200, 100), 0.5, np.random.default_rng(seed))
        assert left >= 0
        assert upper >= 0
        assert right <= 200
        assert lower <= 100
        assert (right - left) == pytest.approx(2 * (lower - upper))
        assert 0.5 * 20000 - 1e-6 <= (right - left) * (lower - upper) <= 20000


@pytest.mark.parametrize("change", [{"crop_scale": 0.3}, {"rotation": 40.0}, {"colour_jitter": 0.5}])
def test_variations_follow_the_generator(change):
    vary, image = Augmentation((8, 12), **change), picture(size=30)
    first, same, other = (np.asarray(vary(image, np.random.default_rng(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    if "crop_scale" in change:
        assert first.shape == (8, 12, 3)


def test_the_smallest_crop_of_the_smallest_source_is_large_enough():
    vary = Augmentation((24, 32), crop_scale=0.25)
    assert vary.smallest_source == (128, 96)
    assert Augmentation((24, 32)).smallest_source == (64, 48)


def test_left_stays_left_unless_flips_are_asked_for():
    image = Image.new("RGB", (20, 20), "white")
    image.paste("black", (0, 0, 5, 20))

    def dark_sides(**settings):
        vary = Augmentation((20, 20), crop_scale=0.95, **settings)
        pixels = [np.asarray(vary(image, np.random.default_rng(seed))).mean(axis=(0, 2)) for seed in range(20)]
        return {bool(columns[0] < columns[-1]) for columns in pixels}

    assert dark_sides() == {True}
    assert dark_sides(horizontal_flip=True) == {True, False}


def test_colours_stay_unless_jitter_is_asked_for():
    red = Image.new("RGB", (20, 20), (200, 30, 30))
    vary = Augmentation((20, 20), crop_scale=0.5, rotation=10.0, horizontal_flip=True)
    for seed in range(10):
        assert vary(red, np.random.default_rng(seed)).getcolors() == [(400, (200, 30, 30))]
