import itertools
import math
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from datasets_scripts.doctor.captions import is_close, minhash_signatures, near_pairs, normal_form
from datasets_scripts.doctor.images import Limits, look_at
from datasets_scripts.doctor.images import near_pairs as near_images
from datasets_scripts.doctor.near import (
    Occurrences,
    count_bits,
    members_by_group,
    pairs_in_buckets,
    star_groups,
    unique_pairs,
)
from datasets_scripts.doctor.negatives import count_alike, share_with_one


def numbers(size, high, seed=0):
    return np.random.default_rng(seed).integers(0, high, size, dtype=np.uint64)


def test_bits_are_counted():
    values = numbers(50, 2**63)
    assert count_bits(values).tolist() == [int(value).bit_count() for value in values]


def test_pairs_are_all_that_share_a_key():
    keys = numbers(60, 12)
    found = {tuple(pair) for pair in unique_pairs(list(pairs_in_buckets(keys, numbers(60, 9, 1), window=60))).tolist()}
    assert found == {pair for pair in itertools.combinations(range(60), 2) if keys[pair[0]] == keys[pair[1]]}


def test_full_buckets_take_no_more_than_the_window():
    keys = np.zeros(1000, dtype=np.uint64)
    assert sum(len(some) for some, _ in pairs_in_buckets(keys, keys, window=7)) < 7 * 1000


def test_groups_do_not_drift_along_chains():
    chain = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert star_groups(6, chain).tolist() == [0, 0, 2, 2, 4, 5]
    assert [members.tolist() for members in members_by_group(star_groups(6, chain))] == [[0, 1], [2, 3]]


def texts(number, seed=0):
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(200)]
    return [" ".join(rng.choice(words, 12)) for _ in range(number)]


def test_near_captions_are_those_that_a_search_of_all_pairs_finds():
    forms = texts(100)
    forms += [form[:-1] + "z" for form in forms[:50]] + [form.replace("a", "", 1) for form in forms[50:70]]
    encoded = [f" {form} ".encode() for form in forms]
    wanted = {pair for pair in itertools.combinations(range(len(forms)), 2) if is_close(*(encoded[i] for i in pair))}
    found = {tuple(pair) for pair in near_pairs(forms).tolist()}
    assert found <= wanted
    assert len(found) >= 0.97 * len(wanted)
    assert len(wanted) >= 50


def test_captions_with_the_same_words_are_near():
    assert near_pairs(["red wooden chair", "a b", "wooden red chair"]).tolist() == [[0, 2]]
    assert near_pairs([]).tolist() == near_pairs(["a"]).tolist() == []


def test_signatures_agree_as_often_as_runs_are_shared():
    one, other = b"abcdefghijklmnopqrst" * 3, b"abcdefghijklmnopqrst" * 2 + b"0123456789uvwxyz"
    runs, others = ({text[place : place + 4] for place in range(len(text) - 3)} for text in (one, other))
    first, second = minhash_signatures([one, other])
    assert (first == second).mean() == pytest.approx(len(runs & others) / len(runs | others), abs=0.25)


def test_signatures_do_not_depend_on_the_neighbours():
    forms = [form.encode() for form in texts(5)]
    whole = minhash_signatures(forms)
    assert all((minhash_signatures([form])[0] == row).all() for form, row in zip(forms, whole, strict=True))


def test_normal_forms_keep_words_only():
    assert normal_form("A  red-ish CHAIR, (two ﬁne legs)!") == "a red ish chair two fine legs"
    assert normal_form("红色的椅子。") == "红色的椅子"
    assert normal_form("?!") == ""


def picture(seed, size=64):
    levels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)


def saved(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def disc(size=64):
    """A picture that is the same from four sides, which many perceptual hashes find hard."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return Image.fromarray(np.where(x**2 + y**2 < (size / 3) ** 2, 60, 255).astype(np.uint8))


def test_lossy_copies_are_near_and_other_pictures_are_not():
    originals = [*(picture(seed) for seed in range(40)), disc()]
    copies = [image.convert("RGB").resize((48, 48), Image.Resampling.LANCZOS) for image in originals]
    contents = [*map(saved, originals), *(saved(image, "JPEG", quality=75) for image in copies)]
    looks = [look_at(content, Limits()) for content in contents]
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    found = near_images(hashes, np.stack([look.thumb for look in looks])).tolist()
    assert found == [[number, number + 41] for number in range(41)]


def test_pictures_are_equal_by_their_pixels():
    image = picture(0)
    png, bmp, jpeg = (look_at(saved(image, format), Limits()) for format in ("PNG", "BMP", "JPEG"))
    assert png.digest == bmp.digest != jpeg.digest
    assert look_at(saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), Limits()).digest != png.digest


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "I;16", "CMYK", "1", "F", "I"])
def test_images_of_every_mode_are_looked_at(mode):
    levels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 60
    image = picture(0, 32).convert("L").convert(mode) if mode != "I;16" else Image.fromarray(levels)
    look = look_at(saved(image, "TIFF"), Limits())
    assert (look.width, look.height, look.is_blank) == (32, 32, False)


def test_the_chance_of_a_false_negative_is_that_of_drawing_one():
    for size, drawn, alike in itertools.product((6, 8), (1, 2, 4, 6), (0, 1, 3, 5)):
        batches = list(itertools.combinations(range(size - 1), drawn - 1))
        with_one = sum(any(other < alike for other in batch) for batch in batches)
        assert math.isclose(share_with_one(size, drawn, alike), with_one / len(batches), abs_tol=1e-9)


def test_instances_are_alike_once_however_much_they_share():
    images = Occurrences(np.array([0, 0, 2, 3, 3]), np.array([0, 1, 2, 3, 3]))
    captions = Occurrences(np.array([0, 0, 0, 9]), np.array([0, 1, 4, 2]))
    everyone = np.arange(5)
    assert count_alike([images, captions], everyone, everyone).tolist() == [2, 2, 0, 0, 2]
    assert count_alike([images, captions], everyone[:4], everyone[:4]).tolist() == [1, 1, 0, 0]


def test_near_search_over_many_is_no_search_of_all_pairs():
    start = time.process_time()
    near_pairs(texts(20_000))
    hashes = numbers(100_000, 2**63)
    near_images(hashes, np.zeros((len(hashes), 16, 16, 3), dtype=np.uint8))
    assert time.process_time() - start < 30
