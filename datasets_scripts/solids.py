"""Meshes of boxes, prisms, beams, balls and rings, y up, anticlockwise from outside."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .meshes import CUBE_SIDES, ColouredMesh

Colour = Sequence[float]
Point = Sequence[float]


def painted(vertices: NDArray[np.floating], faces: NDArray[np.integer], colour: Colour) -> ColouredMesh:
    """A mesh of one colour."""
    rgb = np.clip(np.round(colour), 0, 255).astype(np.uint8)
    return ColouredMesh(vertices, faces, np.broadcast_to(rgb, (len(faces), 3)))


def box(low: Point, high: Point, colour: Colour) -> ColouredMesh:
    """The box between two corners."""
    sides = np.array(list(CUBE_SIDES.values()), dtype=np.float64).reshape(-1, 3)
    start, size = np.asarray(low, dtype=np.float64), np.asarray(high) - np.asarray(low)
    first = 4 * np.arange(len(CUBE_SIDES))[:, None, None]
    faces = (first + np.array([[0, 1, 2], [0, 2, 3]])[None]).reshape(-1, 3)
    return painted(start + sides * size, faces, colour)


def prism(
    middle: Point, radii: tuple[float, float], height: float, colour: Colour, sides: int = 28, depth: float = 1.0
) -> ColouredMesh:
    """An upright prism, cylinder, cone or pyramid on the point `middle`, with its radius below and above.

    `depth` stretches it along z. With four sides its corners lie on the diagonals, so that it stands square.
    """
    angles = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    ring = np.stack([np.sin(angles), np.zeros(sides), depth * np.cos(angles)], axis=1)
    below, above = ring * radii[0], ring * radii[1] + [0, height, 0]
    vertices = np.concatenate([below, above, [[0, 0, 0], [0, height, 0]]]) + np.asarray(middle)
    here, following = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = [
        np.stack([here, following, following + sides], axis=1),
        np.stack([here, following + sides, here + sides], axis=1),
        np.stack([following, here, np.full(sides, 2 * sides)], axis=1),
        np.stack([here + sides, following + sides, np.full(sides, 2 * sides + 1)], axis=1),
    ]
    return painted(vertices, np.concatenate(faces), colour)


def beam(start: Point, end: Point, thickness: float, colour: Colour) -> ColouredMesh:
    """A square beam from one point down or up to another, its ends level."""
    half = thickness / 2
    square = np.array([[-half, 0, -half], [-half, 0, half], [half, 0, half], [half, 0, -half]])
    vertices = np.concatenate([square + np.asarray(start), square + np.asarray(end)])
    quads = [[3, 2, 1, 0], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]
    return painted(vertices, np.array([[[a, b, c], [a, c, d]] for a, b, c, d in quads]).reshape(-1, 3), colour)


def wrapped_grid(points: NDArray[np.floating], close_rows: bool, colour: Colour) -> ColouredMesh:
    """The surface through a grid of points, `(rows, columns, 3)`, closed along columns and perhaps along rows."""
    rows, columns, _ = points.shape
    number = np.arange(rows * columns).reshape(rows, columns)
    here, below = (number, np.roll(number, -1, axis=0)) if close_rows else (number[:-1], number[1:])
    right, across = np.roll(here, -1, axis=1), np.roll(below, -1, axis=1)
    faces = np.concatenate([np.stack([here, below, across], axis=2), np.stack([here, across, right], axis=2)])
    return painted(points.reshape(-1, 3), faces.reshape(-1, 3), colour)


def ball(middle: Point, radii: Point, colour: Colour, rings: int = 24) -> ColouredMesh:
    """A sphere or ellipsoid."""
    polar = np.linspace(0, np.pi, rings)[:, None]
    round_ = np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)[None]
    level = np.ones_like(round_)
    points = np.stack([np.sin(polar) * np.sin(round_), np.cos(polar) * level, np.sin(polar) * np.cos(round_)], axis=2)
    return wrapped_grid(points * np.asarray(radii) + np.asarray(middle), False, colour)


def ring(middle: Point, radius: float, thickness: float, height: float, colour: Colour) -> ColouredMesh:
    """A level torus: the radius of its middle circle, and the width and height of what goes round."""
    tube = np.linspace(0, 2 * np.pi, 14, endpoint=False)[:, None]
    round_ = np.linspace(0, 2 * np.pi, 32, endpoint=False)[None]
    reach, level = radius + thickness / 2 * np.sin(tube), np.ones_like(round_)
    points = np.stack([reach * np.sin(round_), height / 2 * np.cos(tube) * level, reach * np.cos(round_)], axis=2)
    return wrapped_grid(points + np.asarray(middle), True, colour)
