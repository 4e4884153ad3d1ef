"""What people might write about a procedural shape: several captions, each naming part of what there is to see."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .shape_specs import ALL_FINISHES, Chair, Primitive, Shape, Table, pick

TYPO_RATE = 0.07
UNCOLOURED_RATE = 0.45  # of the mentions of legs and pedestals
COUNT_WORDS = {1: ("one", "a single"), 2: ("two", "2"), 3: ("three", "3")}
CHAIR_ADJECTIVES = {
    "round": ("round seated", "round"),
    "narrow": ("narrow", "slim"),
    "wide": ("wide", "broad"),
    "short": ("low", "short legged"),
    "tall": ("high", "long legged"),
}
TABLE_ADJECTIVES = {
    "round": ("round", "circular"),
    "oval": ("oval", "elliptical"),
    "square": ("square",),
    "rectangular": ("rectangular", "long"),
    "low": ("low", "short"),
    "tall": ("tall", "high"),
}
BACK_PHRASES = {
    "none": ("no back", "no backrest"),
    "solid": ("a solid back", "a closed backrest"),
    "slatted": ("a slatted back", "vertical bars in the back", "a back of upright slats"),
    "ladder": ("a ladder back", "horizontal bars in the back", "a back of level slats"),
}
BASE_PHRASES = {  # the first two of each also serve without a colour
    "legs": ("four {} legs", "4 {} legs", "{} legs"),
    "three_legs": ("three {} legs", "3 {} legs"),
    "pedestal": ("a {} pedestal", "a single {} leg in the middle", "a {} column with a round foot"),
    "panels": ("{} side panels", "two {} boards for legs"),
}
SOLID_NOUNS = {
    "box": ("box", "block", "cuboid"),
    "cylinder": ("cylinder", "drum"),
    "cone": ("cone",),
    "pyramid": ("pyramid",),
    "sphere": ("ball", "sphere", "ellipsoid"),
    "torus": ("ring", "torus", "donut"),
}
HEIGHT_WORDS = {"short": ("short", "low"), "regular": ("medium height",), "tall": ("tall", "high")}
WIDTH_WORDS = {"thin": ("thin", "narrow"), "regular": ("medium width",), "wide": ("wide", "broad")}


class Wording(NamedTuple):
    """One way to word everything there is to say about a shape."""

    noun: str
    colour: str
    vague_colour: str
    adjectives: tuple[str, ...]
    base: str  # what it stands on; empty for a primitive
    details: tuple[str, ...]  # further parts, to follow "with"
    material: str


def captions_of(shape: Shape, rng: np.random.Generator) -> list[str]:
    """Three to six different captions of a shape, true but for the odd typo, in different styles."""
    wanted = int(rng.integers(3, 7))
    styles = PRIMITIVE_STYLES if isinstance(shape, Primitive) else STYLES
    captions: list[str] = []
    while len(captions) < wanted:
        caption = pick(rng, styles)(word(shape, rng), rng)
        caption = mistype(dress(caption, rng), rng)
        if bare(caption) not in map(bare, captions):
            captions.append(caption)
    return captions


def bare(caption: str) -> str:
    """The caption without capitals and full stops, for telling whether two are the same."""
    return caption.lower().rstrip(".")


def word(shape: Shape, rng: np.random.Generator) -> Wording:
    """A wording of the shape, its synonyms drawn at random."""
    if isinstance(shape, Chair):
        return word_chair(shape, rng)
    if isinstance(shape, Table):
        return word_table(shape, rng)
    return word_primitive(shape, rng)


def word_chair(chair: Chair, rng: np.random.Generator) -> Wording:
    """A wording of a chair."""
    details = [pick(rng, BACK_PHRASES[chair.back])]
    if chair.back != "none":
        details.append(pick(rng, ("armrests", "arms")) if chair.arms else "no arms")
        details.append({"low": "a low back", "tall": "a tall back"}[chair.back_height])
    if chair.back_finish != chair.seat_finish:
        details.append(with_article(f"{colour_of(chair.back_finish, rng)} back"))
    nouns = ("stool", "stool", "seat") if chair.back == "none" else ("chair", "chair", "chair", "seat")
    return Wording(
        noun="armchair" if chair.arms and rng.random() < 0.4 else pick(rng, nouns),
        colour=colour_of(chair.seat_finish, rng),
        vague_colour=pick(rng, ALL_FINISHES[chair.seat_finish].vague),
        adjectives=adjectives_of((chair.seat_shape, chair.width, chair.leg_height), CHAIR_ADJECTIVES, rng),
        base=base_of(chair.base, chair.leg_finish, rng),
        details=tuple(details),
        material=ALL_FINISHES[chair.seat_finish].material,
    )


def word_table(table: Table, rng: np.random.Generator) -> Wording:
    """A wording of a table."""
    details = [pick(rng, ("a thick top", "a chunky top") if table.thick else ("a thin top",))]
    if table.drawers:
        count = pick(rng, COUNT_WORDS[table.drawers])
        details.append(f"{count} drawer{'s' if table.drawers > 1 else ''}")
    if table.shelf:
        details.append(pick(rng, ("a shelf underneath", "a lower shelf")))
    nouns = {"low": ("coffee table", "table"), "regular": ("table", "table"), "tall": ("bar table", "table")}
    return Wording(
        noun="desk" if table.drawers and rng.random() < 0.4 else pick(rng, nouns[table.height]),
        colour=colour_of(table.top_finish, rng),
        vague_colour=pick(rng, ALL_FINISHES[table.top_finish].vague),
        adjectives=adjectives_of((table.top_shape, table.height), TABLE_ADJECTIVES, rng),
        base=base_of(table.base, table.leg_finish, rng),
        details=tuple(details),
        material=ALL_FINISHES[table.top_finish].material,
    )


def word_primitive(shape: Primitive, rng: np.random.Generator) -> Wording:
    """A wording of a primitive."""
    return Wording(
        noun=pick(rng, SOLID_NOUNS[shape.solid]),
        colour=colour_of(shape.finish, rng),
        vague_colour=pick(rng, ALL_FINISHES[shape.finish].vague),
        adjectives=(pick(rng, HEIGHT_WORDS[shape.height]), pick(rng, WIDTH_WORDS[shape.width])),
        base="",
        details=(),
        material=ALL_FINISHES[shape.finish].material,
    )


def colour_of(finish: str, rng: np.random.Generator) -> str:
    """A word for the finish's colour, most often the plain one, sometimes with the material."""
    names, material = ALL_FINISHES[finish].names, ALL_FINISHES[finish].material
    name = pick(rng, names, (2.0,) + (1.0,) * (len(names) - 1))
    if material == "plastic" or rng.random() < 0.6:
        return name
    return f"{name} {material}"


def base_of(base: str, finish: str, rng: np.random.Generator) -> str:
    """What the shape stands on, with its colour or without."""
    if rng.random() < UNCOLOURED_RATE:
        return pick(rng, BASE_PHRASES[base][:2]).replace("{} ", "")
    colour = colour_of(finish, rng)
    return pick(rng, BASE_PHRASES[base]).replace("a {}", with_article(colour)).replace("{}", colour)


def adjectives_of(
    values: Sequence[str], words: Mapping[str, tuple[str, ...]], rng: np.random.Generator
) -> tuple[str, ...]:
    """An adjective for each value that has one, in random order."""
    named = [pick(rng, words[value]) for value in values if value in words]
    return tuple(named[place] for place in rng.permutation(len(named)))


def plain_colour(said: Wording) -> str:
    """The colour without the material that may follow it."""
    return said.colour.removesuffix(f" {said.material}")


def with_article(phrase: str) -> str:
    """The phrase after `a` or `an`."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def listed(phrases: Sequence[str]) -> str:
    """`x`, `x and y`, `x, y and z`."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def some(phrases: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    """Up to `most` of the phrases, in random order."""
    return [phrases[place] for place in rng.permutation(len(phrases))[:most]]


def two_colours(said: Wording, rng: np.random.Generator) -> str:
    """A red chair with four blue legs."""
    return f"{with_article(f'{said.colour} {said.noun}')} with {said.base}"


def short(said: Wording, rng: np.random.Generator) -> str:
    """Red wide chair, armrests."""
    start = " ".join([*some(said.adjectives, 1, rng), said.colour, said.noun])
    return f"{start} with {listed(some(said.details, 2, rng))}"


def long(said: Wording, rng: np.random.Generator) -> str:
    """This is a wide red chair with four blue legs. It has armrests and a tall back."""
    start = with_article(" ".join([*some(said.adjectives, 2, rng), said.colour, said.noun]))
    opening = pick(rng, ("this is {}", "it is {}", "there is {}", "{}"))
    return f"{opening.format(start)} with {said.base}. it has {listed(some(said.details, 3, rng))}"


def partial(said: Wording, rng: np.random.Generator) -> str:
    """Something wide with four blue legs and armrests."""
    start = " ".join(["something", *some(said.adjectives, 1, rng)])
    return f"{start} with {listed([said.base, *some(said.details, 2, rng)])}"


def vague(said: Wording, rng: np.random.Generator) -> str:
    """A reddish wide chair with four blue legs and armrests."""
    start = with_article(" ".join([said.vague_colour, *some(said.adjectives, 1, rng), said.noun]))
    return f"{start} with {listed([said.base, *some(said.details, 1, rng)])}"


def clipped(said: Wording, rng: np.random.Generator) -> str:
    """The chair is made of plastic and has four blue legs, it is red in colour."""
    start = pick(rng, ("the {} is made of {}", "{} made from {}")).format(said.noun, material_word(said.material))
    ending = pick(rng, ("it is {} in colour", "colour is {}", "{} in color")).format(plain_colour(said))
    return f"{start} and has {said.base}, {ending}"


def enumerated(said: Wording, rng: np.random.Generator) -> str:
    """Chair, red, wide, four blue legs, armrests."""
    return ", ".join([said.noun, said.colour, *some(said.adjectives, 1, rng), said.base, *some(said.details, 1, rng)])


def plain_solid(said: Wording, rng: np.random.Generator) -> str:
    """A tall red cone."""
    return with_article(" ".join([*some(said.adjectives, int(rng.integers(1, 3)), rng), said.colour, said.noun]))


def solid_in_colour(said: Wording, rng: np.random.Generator) -> str:
    """The cone is tall and thin. it is red in colour."""
    return f"the {said.noun} is {listed(some(said.adjectives, 2, rng))}. it is {plain_colour(said)} in colour"


def vague_solid(said: Wording, rng: np.random.Generator) -> str:
    """Something tall and thin, reddish, shaped like a cone."""
    return f"something {listed(some(said.adjectives, 2, rng))}, {said.vague_colour}, shaped like {with_article(said.noun)}"


def listed_solid(said: Wording, rng: np.random.Generator) -> str:
    """Cone, red, tall, thin."""
    return ", ".join([said.noun, said.colour, *some(said.adjectives, 2, rng)])


def material_word(material: str) -> str:
    """The noun of a material."""
    return {"wooden": "wood"}.get(material, material)


def dress(caption: str, rng: np.random.Generator) -> str:
    """The caption as people type it: with or without capitals and a full stop."""
    manner = rng.random()
    if manner < 0.4:
        caption = ". ".join(sentence[0].upper() + sentence[1:] for sentence in caption.split(". "))
    return caption + "." if manner < 0.25 or manner > 0.85 else caption


def mistype(caption: str, rng: np.random.Generator) -> str:
    """The caption, now and then with two letters of a word swapped or one lost."""
    words = caption.split(" ")
    long_words = [place for place, text in enumerate(words) if len(text) > 4 and text.isalpha()]
    if not long_words or rng.random() >= TYPO_RATE:
        return caption
    place = pick(rng, long_words)
    letter = int(rng.integers(1, len(words[place]) - 2))
    text = words[place]
    words[place] = text[:letter] + pick(rng, (text[letter + 1] + text[letter], text[letter + 1])) + text[letter + 2 :]
    return " ".join(words)


Style = Callable[[Wording, np.random.Generator], str]
STYLES: tuple[Style, ...] = (two_colours, short, long, long, partial, vague, clipped, enumerated)
PRIMITIVE_STYLES: tuple[Style, ...] = (plain_solid, plain_solid, solid_in_colour, vague_solid, listed_solid)
