"""The mesh of a chair, table or primitive: y up, on the floor, its front towards +z, in metres."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .meshes import ColouredMesh, join_meshes
from .shape_specs import ALL_FINISHES, Chair, Primitive, Shape, Table
from .solids import ball, beam, box, prism, ring

# Brightness of the planks, bands or streaks by which a material shows.
GRAIN = {
    "plastic": (1.0,),
    "wooden": (1.0, 0.8, 1.1, 0.86, 1.04, 0.78),
    "metal": (0.8, 0.95, 1.25, 1.4, 1.1, 0.85),
    "glass": (1.0, 1.0, 1.12, 1.0, 1.08, 1.0),
}
SEAT_WIDTH = {"narrow": 0.34, "regular": 0.5, "wide": 0.84}
SEAT_HEIGHT = {"short": 0.26, "regular": 0.46, "tall": 0.84}
BACK_HEIGHT = {"none": 0.0, "low": 0.26, "tall": 0.64}
SEAT_DEPTH, SEAT_THICKNESS, POST = 0.48, 0.07, 0.06
TOP_SIZE = {"square": (0.84, 0.84), "rectangular": (1.3, 0.7), "round": (0.92, 0.92), "oval": (1.35, 0.75)}
TABLE_HEIGHT = {"low": 0.34, "regular": 0.68, "tall": 1.25}
CASE_HEIGHT = 0.2
PRIMITIVE_HEIGHT = {"short": 0.4, "regular": 0.7, "tall": 1.1}
PRIMITIVE_WIDTH = {"thin": 0.4, "regular": 0.7, "wide": 1.1}
PRIMITIVE_BOUNDS = np.array([[-0.55, 0, -0.55], [0.55, 1.1, 0.55]])


@dataclass(frozen=True)
class Workshop:
    """Makes parts in given finishes; each shape has its own, since tints and lengths differ a little between shapes."""

    rng: np.random.Generator
    tints: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Workshop":
        """A workshop with its own tint of every finish."""
        tints = {
            name: tuple(np.array(finish.rgb) * rng.uniform(0.93, 1.03) + rng.uniform(-4, 4, 3))
            for name, finish in ALL_FINISHES.items()
        }
        return cls(rng, tints)

    def about(self, length: float) -> float:
        """The length, give or take 7 %."""
        return length * self.rng.uniform(0.93, 1.07)

    def colour(self, finish: str, shade: float = 1.0) -> tuple[float, ...]:
        """The finish's tint, brighter or darker."""
        return tuple(shade * value for value in self.tints[finish])

    def slab(self, low: tuple[float, ...], high: tuple[float, ...], finish: str) -> ColouredMesh:
        """A box that shows its material by planks or bands along z."""
        shades = GRAIN[ALL_FINISHES[finish].material]
        cuts = np.linspace(low[0], high[0], len(shades) + 1)
        return join_meshes(
            [
                box((left, *low[1:]), (right, *high[1:]), self.colour(finish, shade))
                for left, right, shade in zip(cuts[:-1], cuts[1:], shades, strict=True)
            ]
        )

    def disc(
        self,
        middle: tuple[float, ...],
        radii: tuple[float, float],
        height: float,
        finish: str,
        depth: float = 1.0,
        sides: int = 36,
    ) -> ColouredMesh:
        """A prism that shows its material by bands from its middle outwards."""
        shades = GRAIN[ALL_FINISHES[finish].material] * 2
        mesh = prism(middle, radii, height, self.colour(finish), sides, depth)
        sector = np.tile(np.arange(sides) * len(shades) // sides, 4)
        shaded = mesh.face_colours * np.array(shades)[sector][:, None]
        return mesh._replace(face_colours=np.clip(shaded, 0, 255).astype(np.uint8))


def build_mesh(shape: Shape, rng: np.random.Generator) -> ColouredMesh:
    """The mesh of a shape; `rng` draws what its parameters leave open, small changes of tint and proportion."""
    workshop = Workshop.of(rng)
    if isinstance(shape, Chair):
        return join_meshes(chair_parts(shape, workshop))
    if isinstance(shape, Table):
        return join_meshes(table_parts(shape, workshop))
    return primitive(shape, workshop)


def chair_parts(chair: Chair, make: Workshop) -> list[ColouredMesh]:
    """Seat, base, back and arms."""
    half_width, half_depth = make.about(SEAT_WIDTH[chair.width]) / 2, make.about(SEAT_DEPTH) / 2
    floor_to_seat = make.about(SEAT_HEIGHT[chair.leg_height])
    top = floor_to_seat + SEAT_THICKNESS
    parts = [board(chair.seat_shape, half_width, half_depth, floor_to_seat, SEAT_THICKNESS, chair.seat_finish, make)]
    inset, reach, front = (0.66, 0.85, 0.45) if chair.seat_shape == "round" else (0.86, 1.0, 1.0)
    parts += BASES[chair.base](half_width * inset, half_depth * inset, floor_to_seat, chair.leg_finish, make)
    if chair.back != "none":
        parts += BACKS[chair.back](
            half_width * reach, half_depth, top, make.about(BACK_HEIGHT[chair.back_height]), chair.back_finish, make
        )
    if chair.arms:
        parts += arms(half_width * reach, (-half_depth, half_depth * front), top, chair.leg_finish, make)
    return parts


def table_parts(table: Table, make: Workshop) -> list[ColouredMesh]:
    """Top, base, drawers and shelf."""
    width, depth = TOP_SIZE[table.top_shape]
    half_width, half_depth = make.about(width) / 2, make.about(depth) / 2
    thickness, height = (0.13 if table.thick else 0.04), make.about(TABLE_HEIGHT[table.height])
    parts = [board(table.top_shape, half_width, half_depth, height, thickness, table.top_finish, make)]
    inset = 0.68 if table.top_shape in ("round", "oval") else 0.92
    half_width, half_depth = half_width * inset, half_depth * inset
    parts += BASES[table.base](half_width, half_depth, height, table.leg_finish, make)
    if table.drawers:
        parts += drawers(table, half_width, half_depth, height, make)
    if table.shelf:
        parts.append(board(table.top_shape, half_width, half_depth, 0.28 * height, 0.05, table.leg_finish, make))
    return parts


def board(
    outline: str, half_width: float, half_depth: float, height: float, thickness: float, finish: str, make: Workshop
) -> ColouredMesh:
    """A seat, a top or a shelf: level, with corners or round, its lower side at that height."""
    if outline in ("round", "oval"):
        return make.disc((0, height, 0), (half_width, half_width), thickness, finish, half_depth / half_width)
    return make.slab((-half_width, height, -half_depth), (half_width, height + thickness, half_depth), finish)


def four_legs(half_width: float, half_depth: float, height: float, finish: str, make: Workshop) -> list[ColouredMesh]:
    """Legs near the corners, a little further apart on the floor."""
    splay = make.rng.uniform(1.0, 1.12)
    corners = [(x * half_width, z * half_depth) for x in (-1, 1) for z in (-1, 1)]
    return [beam((x * splay, 0, z * splay), (x, height, z), POST, make.colour(finish)) for x, z in corners]


def three_legs(half_width: float, half_depth: float, height: float, finish: str, make: Workshop) -> list[ColouredMesh]:
    """One leg in front and two behind, far apart on the floor."""
    around = [np.radians(angle) for angle in (0, 120, 240)]
    tops = [(half_width * np.sin(angle), half_depth * np.cos(angle)) for angle in around]
    return [
        beam((x * 1.25, 0, z * 1.25), (x * 0.7, height, z * 0.7), 1.3 * POST, make.colour(finish)) for x, z in tops
    ]


def pedestal(half_width: float, half_depth: float, height: float, finish: str, make: Workshop) -> list[ColouredMesh]:
    """One column on a round foot."""
    column = make.about(0.06)
    foot = max(min(half_width, half_depth), 3 * column)
    return [
        make.disc((0, 0, 0), (foot, foot * 0.9), 0.05, finish),
        prism((0, 0.05, 0), (column, column), height - 0.05, make.colour(finish), sides=16),
    ]


def panels(half_width: float, half_depth: float, height: float, finish: str, make: Workshop) -> list[ColouredMesh]:
    """A board on each side, from front to back."""
    return [
        box((x - POST / 2, 0, -half_depth), (x + POST / 2, height, half_depth), make.colour(finish))
        for x in (-half_width, half_width)
    ]


def solid_back(
    half_width: float, half_depth: float, seat: float, height: float, finish: str, make: Workshop
) -> list[ColouredMesh]:
    """One board."""
    return [make.slab((-half_width, seat, -half_depth), (half_width, seat + height, POST - half_depth), finish)]


def slatted_back(
    half_width: float, half_depth: float, seat: float, height: float, finish: str, make: Workshop
) -> list[ColouredMesh]:
    """Upright bars under a level one."""
    back, front, top = -half_depth, POST - half_depth, seat + height
    count = max(4, round(half_width * 2 / 0.13) + 1)
    uprights = np.linspace(-half_width, half_width - POST, count)
    return [
        box((-half_width, top - POST, back), (half_width, top, front), make.colour(finish)),
        *(box((x, seat, back), (x + POST * 0.75, top - POST, front), make.colour(finish)) for x in uprights),
    ]


def ladder_back(
    half_width: float, half_depth: float, seat: float, height: float, finish: str, make: Workshop
) -> list[ColouredMesh]:
    """Level bars between two posts."""
    back, front, top = -half_depth, POST - half_depth, seat + height
    steps = np.linspace(top - POST, seat + POST, max(2, round(height / 0.15)))
    return [
        *(box((x, seat, back), (x + POST, top, front), make.colour(finish)) for x in (-half_width, half_width - POST)),
        *(box((-half_width, y, back), (half_width, y + POST, front), make.colour(finish)) for y in steps),
    ]


def arms(
    half_width: float, reach: tuple[float, float], seat: float, finish: str, make: Workshop
) -> list[ColouredMesh]:
    """A rest on a post, left and right of the seat, from the back to as far forward as `reach` says."""
    height, colour, (back, front) = seat + make.about(0.22), make.colour(finish), reach
    return [
        part
        for x in (-half_width - POST / 2, half_width - POST / 2)
        for part in (
            box((x, height - POST, back), (x + POST, height, front), colour),
            box((x, seat - SEAT_THICKNESS, front - POST), (x + POST, height - POST, front), colour),
        )
    ]


def drawers(table: Table, half_width: float, half_depth: float, height: float, make: Workshop) -> list[ColouredMesh]:
    """A case under the top with the drawers side by side in front, a knob on each."""
    low, gap = height - min(CASE_HEIGHT, 0.6 * height), 0.03
    finish, front = table.top_finish, half_depth + 0.015
    parts = [box((-half_width, low, -half_depth), (half_width, height, half_depth), make.colour(finish, 0.5))]
    cuts = np.linspace(-half_width, half_width, table.drawers + 1)
    knob = make.colour("black" if table.leg_finish == finish and finish != "black" else "white", 1.0)
    for left, right in pairwise(cuts):
        middle, level = (left + right) / 2, (low + height) / 2
        face = (left + gap, low + gap, 0), (right - gap, height - gap, front)
        parts += [box(*face, make.colour(finish)), ball((middle, level, front + 0.01), (0.035, 0.035, 0.035), knob, 8)]
    return parts


def primitive(shape: Primitive, make: Workshop) -> ColouredMesh:
    """The solid, standing on the floor."""
    height, radius = make.about(PRIMITIVE_HEIGHT[shape.height]), make.about(PRIMITIVE_WIDTH[shape.width]) / 2
    colour, floor, middle = make.colour(shape.finish), (0, 0, 0), (0, height / 2, 0)
    if shape.solid == "box":
        return make.slab((-radius, 0, -radius), (radius, height, radius), shape.finish)
    if shape.solid == "sphere":
        return ball(middle, (radius, height / 2, radius), colour)
    if shape.solid == "torus":
        return ring(middle, radius * 0.7, radius * 0.6, height, colour)
    above, sides = {"cylinder": (radius, 36), "cone": (0.0, 36), "pyramid": (0.0, 4)}[shape.solid]
    spread = np.sqrt(2) if shape.solid == "pyramid" else 1
    return make.disc(floor, (radius * spread, above), height, shape.finish, sides=sides)


Part = Callable[[float, float, float, str, Workshop], list[ColouredMesh]]
BackPart = Callable[[float, float, float, float, str, Workshop], list[ColouredMesh]]
BASES: dict[str, Part] = {"legs": four_legs, "three_legs": three_legs, "pedestal": pedestal, "panels": panels}
BACKS: dict[str, BackPart] = {"solid": solid_back, "slatted": slatted_back, "ladder": ladder_back}
