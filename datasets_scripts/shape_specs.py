"""What a procedural shape is: the palette, and chairs, tables and primitives drawn at random from their parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Finish(NamedTuple):
    """The colour and material of a part, and the words that people have for them."""

    rgb: tuple[int, int, int]
    material: str
    names: tuple[str, ...]
    vague: tuple[str, ...]


FINISHES = {
    "red": Finish((205, 32, 38), "plastic", ("red", "crimson", "scarlet"), ("reddish", "warm coloured", "bright")),
    "orange": Finish((243, 128, 24), "plastic", ("orange",), ("warm coloured", "bright")),
    "yellow": Finish((245, 214, 40), "plastic", ("yellow", "golden"), ("yellowish", "warm coloured", "bright")),
    "green": Finish((44, 140, 56), "plastic", ("green", "emerald"), ("greenish", "cool coloured")),
    "teal": Finish((36, 178, 180), "plastic", ("turquoise", "teal", "cyan"), ("bluish", "cool coloured", "bright")),
    "blue": Finish((34, 74, 192), "plastic", ("blue", "royal blue"), ("bluish", "cool coloured")),
    "purple": Finish((118, 52, 158), "plastic", ("purple", "violet"), ("purplish", "cool coloured")),
    "pink": Finish((244, 142, 186), "plastic", ("pink", "rose"), ("pinkish", "light coloured")),
    "white": Finish((246, 246, 246), "plastic", ("white",), ("whitish", "light coloured")),
    "black": Finish((34, 34, 38), "plastic", ("black",), ("blackish", "dark")),
    "brown": Finish((122, 72, 36), "wooden", ("brown", "dark brown"), ("brownish", "dark")),
    "tan": Finish((208, 168, 116), "wooden", ("beige", "tan", "light brown"), ("brownish", "light coloured")),
    "grey": Finish((134, 140, 148), "metal", ("grey", "gray", "silver"), ("greyish",)),
}
GLASS = {"glass": Finish((186, 226, 236), "glass", ("pale blue", "light blue"), ("bluish", "light coloured"))}
ALL_FINISHES = FINISHES | GLASS
SOLIDS = ("box", "cylinder", "cone", "pyramid", "sphere", "torus")


@dataclass(frozen=True)
class Chair:
    """A chair, a stool where `back` is `none`. A finish is a key of `FINISHES`."""

    seat_finish: str
    back_finish: str
    leg_finish: str
    seat_shape: str  # square, round
    width: str  # narrow, regular, wide
    back: str  # none, solid, slatted (upright bars), ladder (level bars)
    back_height: str  # low, tall
    base: str  # legs, pedestal, panels
    leg_height: str  # short, regular, tall
    arms: bool


@dataclass(frozen=True)
class Table:
    """A table. A finish is a key of `ALL_FINISHES`."""

    top_finish: str
    leg_finish: str
    top_shape: str  # square, rectangular, round, oval
    thick: bool
    base: str  # legs, three_legs, pedestal, panels
    height: str  # low, regular, tall
    drawers: int  # 0 to 3
    shelf: bool


@dataclass(frozen=True)
class Primitive:
    """A solid in one colour."""

    finish: str
    solid: str  # one of SOLIDS
    height: str  # short, regular, tall
    width: str  # thin, regular, wide


Shape = Chair | Table | Primitive


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of the options, by weight where there are weights."""
    odds = None if weights is None else np.asarray(weights) / np.sum(weights)
    return options[int(rng.choice(len(options), p=odds))]


def draw_chair(rng: np.random.Generator) -> Chair:
    """A random chair. A third match legs and seat, a quarter have a back of its own colour."""
    finishes = tuple(FINISHES)
    seat = pick(rng, finishes)
    back = pick(rng, ("none", "solid", "slatted", "ladder"), (1, 4, 2.5, 2.5))
    return Chair(
        seat_finish=seat,
        back_finish=pick(rng, finishes) if back != "none" and rng.random() < 0.25 else seat,
        leg_finish=pick(rng, finishes) if rng.random() < 0.7 else seat,
        seat_shape=pick(rng, ("square", "round"), (7, 3)),
        width=pick(rng, ("narrow", "regular", "wide"), (1, 3, 1.5)),
        back=back,
        back_height=pick(rng, ("low", "tall")),
        base=pick(rng, ("legs", "pedestal", "panels"), (5, 3, 2)),
        leg_height=pick(rng, ("short", "regular", "tall"), (2, 3, 2)),
        arms=back != "none" and rng.random() < 0.4,
    )


def draw_table(rng: np.random.Generator) -> Table:
    """A random table. A quarter match legs and top; drawers hang under tops with corners, shelves between legs."""
    top = pick(rng, tuple(ALL_FINISHES))
    top_shape = pick(rng, ("square", "rectangular", "round", "oval"), (2.5, 3.5, 3, 1.5))
    corners = top_shape in ("square", "rectangular")
    base = pick(rng, ("legs", "pedestal", "panels" if corners else "three_legs"), (4, 3, 3))
    height = pick(rng, ("low", "regular", "tall"), (3, 4, 3))
    return Table(
        top_finish=top,
        leg_finish=pick(rng, tuple(FINISHES)) if top == "glass" or rng.random() < 0.75 else top,
        top_shape=top_shape,
        thick=rng.random() < 0.35,
        base=base,
        height=height,
        drawers=pick(rng, (0, 1, 2, 3), (5, 1, 2, 2)) if corners and top != "glass" else 0,
        shelf=base in ("legs", "panels") and height != "low" and rng.random() < 0.4,
    )


def draw_primitive(rng: np.random.Generator) -> Primitive:
    """A random primitive."""
    return Primitive(
        finish=pick(rng, tuple(ALL_FINISHES)),
        solid=pick(rng, SOLIDS),
        height=pick(rng, ("short", "regular", "tall")),
        width=pick(rng, ("thin", "regular", "wide")),
    )


DRAW: dict[str, Callable[[np.random.Generator], Shape]] = {
    "chair": draw_chair,
    "table": draw_table,
    "primitive": draw_primitive,
}
