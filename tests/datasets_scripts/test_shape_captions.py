import re

import numpy as np
import pytest

from datasets_scripts import shape_captions
from datasets_scripts.shape_captions import captions_of, mistype
from datasets_scripts.shape_specs import ALL_FINISHES, DRAW, Chair, Primitive, Table

# What a reader takes each word for, written down without looking at how captions are made.
COLOURS = {
    "dark brown": "brown", "light brown": "tan", "beige": "tan", "tan": "tan", "brown": "brown",
    "royal blue": "blue", "pale blue": "glass", "light blue": "glass", "blue": "blue",
    "turquoise": "teal", "teal": "teal", "cyan": "teal", "red": "red", "crimson": "red", "scarlet": "red",
    "orange": "orange", "yellow": "yellow", "golden": "yellow", "green": "green", "emerald": "green",
    "purple": "purple", "violet": "purple", "pink": "pink", "rose": "pink", "white": "white", "black": "black",
    "grey": "grey", "gray": "grey", "silver": "grey",
}  # fmt: skip
COLOUR = "|".join(sorted(COLOURS, key=len, reverse=True))
WOOD = r"(?: wooden| metal| glass)?"
BASE_COLOUR = re.compile(rf"\b({COLOUR}){WOOD} (?:legs?|pedestal|column|side panels|boards)\b")
BACK_COLOUR = re.compile(rf"\b({COLOUR}){WOOD} back\b")
NOUNS = "chair|armchair|stool|seat|table|coffee table|bar table|desk|box|block|cuboid|cylinder|drum|cone|pyramid|ball|sphere|ellipsoid|ring|torus|donut"
MAIN_COLOUR = re.compile(
    rf"\b({COLOUR}){WOOD} (?:{NOUNS})\b|(?:colou?r is|it is) ({COLOUR})\b(?! \w+ie)|({COLOUR}) in color|^(?:{NOUNS}), ({COLOUR})\b"
)
CHAIR_CLAIMS = {
    r"armchair|\barmrests|(?<!no )\barms\b": lambda s: s.arms,
    r"no arms": lambda s: not s.arms,
    r"\bstool|no back": lambda s: s.back == "none",
    r"slatted|vertical bars|upright slats": lambda s: s.back == "slatted",
    r"ladder|horizontal bars|level slats": lambda s: s.back == "ladder",
    r"solid back|closed backrest": lambda s: s.back == "solid",
    r"\blow back": lambda s: s.back_height == "low",
    r"\btall back": lambda s: s.back_height == "tall",
    r"\bround\b(?! foot)": lambda s: s.seat_shape == "round",
    r"\bnarrow|\bslim": lambda s: s.width == "narrow",
    r"\bwide|\bbroad": lambda s: s.width == "wide",
    r"short legged|\blow\b(?! back)": lambda s: s.leg_height == "short",
    r"long legged|\bhigh\b": lambda s: s.leg_height == "tall",
}
TABLE_CLAIMS = {
    r"\bround\b(?! foot)|circular": lambda s: s.top_shape == "round",
    r"\boval|elliptical": lambda s: s.top_shape == "oval",
    r"\bsquare": lambda s: s.top_shape == "square",
    r"rectangular|\blong\b": lambda s: s.top_shape == "rectangular",
    r"\blow\b|\bshort\b|coffee": lambda s: s.height == "low",
    r"\btall\b|\bhigh\b|bar table": lambda s: s.height == "tall",
    r"thick|chunky": lambda s: s.thick,
    r"thin top": lambda s: not s.thick,
    r"drawer|desk": lambda s: s.drawers > 0,
    r"(one|a single) drawer": lambda s: s.drawers == 1,
    r"(two|2) drawers": lambda s: s.drawers == 2,
    r"(three|3) drawers": lambda s: s.drawers == 3,
    r"shelf": lambda s: s.shelf,
}
FURNITURE_CLAIMS = {
    r"\b(four|4)\b": lambda s: s.base == "legs",
    r"\b(three|3) \w+(?! drawer).* legs": lambda s: s.base == "three_legs" or getattr(s, "drawers", 0) == 3,
    r"pedestal|column|in the middle": lambda s: s.base == "pedestal",
    r"panels|boards": lambda s: s.base == "panels",
}
PRIMITIVE_CLAIMS = {
    r"\bbox|block|cuboid": lambda s: s.solid == "box",
    r"cylinder|drum": lambda s: s.solid == "cylinder",
    r"\bcone": lambda s: s.solid == "cone",
    r"pyramid": lambda s: s.solid == "pyramid",
    r"\bball|sphere|ellipsoid": lambda s: s.solid == "sphere",
    r"\bring\b|torus|donut": lambda s: s.solid == "torus",
    r"\bshort|\blow\b": lambda s: s.height == "short",
    r"\btall|\bhigh": lambda s: s.height == "tall",
    r"medium height": lambda s: s.height == "regular",
    r"\bthin|narrow": lambda s: s.width == "thin",
    r"\bwide|broad": lambda s: s.width == "wide",
    r"medium width": lambda s: s.width == "regular",
}
VAGUE = {
    "dark": {"black", "brown"}, "bright": {"red", "orange", "yellow", "teal"},
    "light coloured": {"pink", "white", "tan", "glass"}, "warm coloured": {"red", "orange", "yellow"},
    "cool coloured": {"green", "teal", "blue", "purple"}, "bluish": {"teal", "blue", "glass"}, "reddish": {"red"},
    "yellowish": {"yellow"}, "greenish": {"green"}, "purplish": {"purple"}, "pinkish": {"pink"},
    "whitish": {"white"}, "blackish": {"black"}, "brownish": {"brown", "tan"}, "greyish": {"grey"},
}  # fmt: skip


def main_finish(shape):
    return shape.finish if isinstance(shape, Primitive) else getattr(shape, "seat_finish", None) or shape.top_finish


def false_claims(caption, shape):
    """What the caption says and the shape is not."""
    text = caption.lower()
    claims = dict(PRIMITIVE_CLAIMS if isinstance(shape, Primitive) else FURNITURE_CLAIMS)
    claims |= CHAIR_CLAIMS if isinstance(shape, Chair) else TABLE_CLAIMS if isinstance(shape, Table) else {}
    wrong = [claim for claim, holds in claims.items() if re.search(claim, text) and not holds(shape)]
    wrong += [
        f"noun of {kind.__name__}"
        for kind, nouns in KINDS.items()
        if re.search(nouns, text) and not isinstance(shape, kind)
    ]
    wrong += [c for c in BASE_COLOUR.findall(text) if COLOURS[c] != getattr(shape, "leg_finish", "")]
    wrong += [c for c in BACK_COLOUR.findall(text) if COLOURS[c] != getattr(shape, "back_finish", "")]
    wrong += [c for found in MAIN_COLOUR.findall(text) for c in found if c and COLOURS[c] != main_finish(shape)]
    plain = re.sub(COLOUR, "", text)
    wrong += [
        word
        for word, finishes in VAGUE.items()
        if re.search(rf"\b{word}\b", plain) and main_finish(shape) not in finishes
    ]
    made = re.search(r"made (?:of|from) (\w+)", text)
    material = ALL_FINISHES[main_finish(shape)].material.replace("wooden", "wood")
    return wrong + ([made[1]] if made and made[1] != material else [])


KINDS = {
    Chair: r"\b(armchair|chair|stool|seat(?!ed))\b",
    Table: r"\b(table|desk)\b",
    Primitive: r"\b(cuboid|cylinder|drum|cone|pyramid|sphere|ellipsoid|torus|donut|cube)\b",
}


def draw(kind, number):
    rng = np.random.default_rng((7, number))
    shape = DRAW[kind](rng)
    return shape, captions_of(shape, rng)


@pytest.mark.parametrize("kind", sorted(DRAW))
def test_a_caption_never_names_what_the_shape_has_not(kind, monkeypatch):
    monkeypatch.setattr(shape_captions, "TYPO_RATE", 0)
    for number in range(400):
        shape, captions = draw(kind, number)
        for caption in captions:
            assert not false_claims(caption, shape), f"{caption!r} of {shape}"


def test_captions_say_much_but_not_everything(monkeypatch):
    monkeypatch.setattr(shape_captions, "TYPO_RATE", 0)
    drawn = [draw("chair" if number % 2 else "table", number) for number in range(300)]
    fitting = np.array(
        [
            sum(not false_claims(caption, other) for other, _ in drawn)
            for _, captions in drawn[:30]
            for caption in captions
        ]
    )
    assert 1 <= np.median(fitting) <= 4
    assert np.mean(fitting > 1) > 0.2


@pytest.mark.parametrize("kind", sorted(DRAW))
def test_a_shape_has_three_to_six_different_captions(kind):
    drawn = [draw(kind, number)[1] for number in range(100)]
    assert {len(captions) for captions in drawn} == {3, 4, 5, 6}
    assert all(len({caption.lower().rstrip(".") for caption in captions}) == len(captions) for captions in drawn)


def test_articles_fit_their_words():
    text = "\n".join(caption.lower() for number in range(300) for caption in draw("chair", number)[1])
    assert not re.search(r"\ba [aeio]\w+", text)


def test_some_captions_have_a_typo_and_most_have_none():
    plain = "a crimson chair with purple legs"
    typed = [mistype(plain, np.random.default_rng(seed)) for seed in range(1000)]
    changed = [caption for caption in typed if caption != plain]
    assert 30 < len(changed) < 120
    assert all(len(plain) - 1 <= len(caption) <= len(plain) for caption in changed)
