"""Shaded views around a mesh, by casting rays on the CPU: no display, no graphics driver."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .meshes import RENDER_INSTALL, ColouredMesh, check_mesh

if TYPE_CHECKING:
    from embreex.rtcore_scene import EmbreeScene

MAX_SIZE = 2048
MAX_VIEWS = 1000
MAX_SAMPLES = 8
MAX_GRID = 4096  # rays along each side of a view: a third of a gigabyte of memory
BACKGROUND = 255.0
AMBIENT_BELOW, AMBIENT_ABOVE, DIRECT = 0.44, 0.54, 0.42  # together below 1: white stands out from the background
LIGHT_IN_CAMERA = np.array([-0.5, 0.35, 0.8]) / np.linalg.norm([-0.5, 0.35, 0.8])  # right, up, backwards
SHADOW = 0.35  # of the direct light that still reaches a shadowed point
SHADOW_OFFSET = 1e-4  # of the shape, so that a face is not its own shadow

Points = NDArray[np.floating]


@dataclass(frozen=True)
class Camera:
    """A perspective camera that goes round the shape, as TriCoLo renders (https://huggingface.co/papers/2201.07366).

    The shape is moved to the origin, and its bounding box scaled to diagonal 1. The first view is from +z; each next
    one is further to the right. TriCoLo's `distance` is 0.85, which cuts the corners of some shapes; None takes the
    smallest distance from which no view cuts anything.
    """

    elevation: float = 36.0  # degrees above the horizon
    field_of_view: float = 60.0  # degrees, of the whole image
    distance: float | None = None
    margin: float = 0.04  # of the image, left free on each side where `distance` is None

    def __post_init__(self) -> None:
        """Refuse what no camera can be."""
        if not -90 < self.elevation < 90 or not 0 < self.field_of_view < 180 or not 0 <= self.margin < 0.5:
            raise ValueError(
                "`elevation` must lie within -90 and 90, `field_of_view` within 0 and 180 and `margin` within 0 and "
                f"0.5, got {self.elevation}, {self.field_of_view} and {self.margin}."
            )
        if self.distance is not None and not self.distance > 0:
            raise ValueError(f"`distance` must be positive or None, got {self.distance}.")

    @property
    def half_width(self) -> float:
        """Half the image's width at distance 1."""
        return float(np.tan(np.radians(self.field_of_view) / 2))

    def axes(self, num_views: int) -> NDArray[np.float64]:
        """The camera's right, up and backward axis in each view, `(num_views, 3, 3)`."""
        azimuth = 2 * np.pi * np.arange(num_views) / num_views
        elevation = np.radians(self.elevation)
        flat, height = np.cos(elevation), np.sin(elevation)
        sin, cos, level = np.sin(azimuth), np.cos(azimuth), np.zeros(num_views)
        right = np.stack([cos, level, -sin], axis=1)
        up = np.stack([-height * sin, level + flat, -height * cos], axis=1)
        backward = np.stack([flat * sin, level + height, flat * cos], axis=1)
        return np.stack([right, up, backward], axis=1)

    def least_distance(self, points: Points) -> float:
        """How far from the origin the camera must stand so that it sees all points, given along its own axes."""
        reach = self.half_width * (1 - 2 * self.margin)
        return float((np.abs(points[:, :2]).max(axis=1) / reach + points[:, 2]).max())


def render_views(
    mesh: ColouredMesh,
    num_views: int = 12,
    size: int = 64,
    camera: Camera | None = None,
    samples: int = 2,
    bounds: NDArray[np.floating] | None = None,
) -> NDArray[np.uint8]:
    """Views around a mesh at equal angles, on white, `(num_views, size, size, 3)`.

    Args:
        mesh: The shape, y up.
        num_views: How many.
        size: Width and height of a view in pixels.
        camera: Where from; by default 36 degrees up, field of view 60 degrees, as near as the shape allows.
        samples: Rays along each side of a pixel, so `samples**2` a pixel.
        bounds: The low and high corner, `(2, 3)`, of the box to frame in place of the mesh's own, so that the sizes
            of several shapes compare.

    Raises:
        ValueError: If the mesh can't be rendered, or a number is out of its range.
    """
    check_mesh(mesh)
    check_range("num_views", num_views, MAX_VIEWS)
    check_range("size", size, MAX_SIZE)
    check_range("samples", samples, MAX_SAMPLES)
    check_range("size * samples", size * samples, MAX_GRID)
    camera = camera or Camera()
    surface = Surface(mesh, mesh_bounds(mesh) if bounds is None else bounds)
    framed = surface.vertices if bounds is None else surface.normalised(box_corners(bounds))
    axes = camera.axes(num_views)
    distance = camera.distance or max(camera.least_distance(framed @ axis.T) for axis in axes)
    rays = ray_directions(size * samples, camera.half_width)
    views = np.empty((num_views, size, size, 3), dtype=np.uint8)
    for view, axis in zip(views, axes, strict=True):
        box = covered_box(surface.vertices @ axis.T, distance, camera.half_width, len(rays))
        canvas = np.full(rays.shape, BACKGROUND, dtype=np.float32)
        canvas[box] = surface.shade(rays[box] @ axis.astype(np.float32), distance * axis[2], LIGHT_IN_CAMERA @ axis)
        view[:] = mean_of_samples(canvas, samples).round()
    return views


def mean_of_samples(canvas: Points, samples: int) -> Points:
    """The mean of every `samples` by `samples` cells, `(size, size, 3)`."""
    # Far faster than a reshape and `mean` over two axes, which took a fifth of all rendering time.
    offsets = product(range(samples), repeat=2)
    return np.sum([canvas[row::samples, column::samples] for row, column in offsets], axis=0) / samples**2


def mesh_bounds(mesh: ColouredMesh) -> Points:
    """The low and high corner of the mesh's bounding box, `(2, 3)`."""
    return np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])


def box_corners(bounds: Points) -> Points:
    """The eight corners of a box, `(8, 3)`."""
    return np.array(list(product(*bounds.T)))


def check_range(name: str, value: int, most: int) -> None:
    """Raise ValueError unless `1 <= value <= most`."""
    if not 1 <= value <= most:
        raise ValueError(f"`{name}` must lie within 1 and {most}, got {value}.")


@lru_cache(maxsize=1)
def ray_directions(grid: int, half_width: float) -> Points:
    """The direction through the middle of each cell of the image, along the camera's axes, `(grid, grid, 3)`."""
    middles = ((np.arange(grid) + 0.5) / grid * 2 - 1) * half_width
    right, up = np.meshgrid(middles, -middles)
    return np.stack([right, up, np.full_like(right, -1)], axis=2).astype(np.float32)


def covered_box(points: Points, distance: float, half_width: float, grid: int) -> tuple[slice, slice]:
    """The rows and columns of the image that the points lie in; all of it where one is not before the camera."""
    depth = distance - points[:, 2]
    if depth.min() <= 0:
        return slice(0, grid), slice(0, grid)
    right, up = (points[:, :2] / (depth[:, None] * half_width)).T
    columns, rows = (right + 1) / 2 * grid, (1 - up) / 2 * grid
    return span(rows, grid), span(columns, grid)


def span(positions: Points, grid: int) -> slice:
    """The cells from the lowest to the highest position, within the grid."""
    first, last = np.clip([np.floor(positions.min()), np.ceil(positions.max())], 0, grid).astype(int)
    return slice(int(first), int(last))


class Surface:
    """A mesh ready to be seen: its bounds moved to the origin and scaled to diagonal 1, and in Embree's tree."""

    def __init__(self, mesh: ColouredMesh, bounds: Points) -> None:
        self.middle, self.diagonal = bounds.mean(axis=0), np.linalg.norm(bounds[1] - bounds[0])
        self.vertices = self.normalised(mesh.vertices)
        self.corners = self.vertices[mesh.faces]  # (num_faces, 3, 3)
        self.normals = unit_normals(self.corners)
        self.colours = mesh.face_colours.astype(np.float32)
        self.scene = embree_scene(self.vertices, mesh.faces)

    def normalised(self, points: Points) -> Points:
        """Points of the mesh's own axes where the camera sees them."""
        return ((points - self.middle) / self.diagonal).astype(np.float32)

    def shade(self, rays: Points, origin: Points, light: Points) -> Points:
        """The colour that each ray sees, `(rows, columns, 3)`; `origin` is where all rays start, `light` a unit vector.

        Light comes from the sky, less of it from below, and from one direction, less of it in shadow. Both sides of
        a face are seen, since the faces of real meshes often point inwards.
        """
        shape, rays = rays.shape, np.ascontiguousarray(rays.reshape(-1, 3))
        start = origin.astype(np.float32)
        colours = np.full(rays.shape, BACKGROUND, dtype=np.float32)
        faces = self.scene.run(np.broadcast_to(start, rays.shape), rays)
        hits = np.flatnonzero(faces >= 0)
        if len(hits):
            colours[hits] = self.lit(faces[hits], rays[hits], start, light.astype(np.float32))
        return colours.reshape(shape)

    def lit(self, faces: NDArray[np.integer], rays: Points, start: Points, light: Points) -> Points:
        """The colour of each hit face under the light, `(num_hits, 3)`."""
        normals = self.normals[faces]
        facing = np.einsum("ij,ij->i", normals, rays)
        length = np.einsum("ij,ij->i", normals, self.corners[faces, 0] - start) / np.where(facing == 0, 1, facing)
        normals = np.where(facing[:, None] > 0, -normals, normals)
        points = start + length[:, None] * rays + SHADOW_OFFSET * normals
        slope = np.maximum(normals @ light, 0)
        in_shadow = self.scene.run(points, light[None], query="OCCLUDED") >= 0
        direct = DIRECT * slope * np.where(in_shadow, SHADOW, 1)
        ambient = AMBIENT_BELOW + (AMBIENT_ABOVE - AMBIENT_BELOW) * (normals[:, 1] + 1) / 2
        return np.minimum(self.colours[faces] * (ambient + direct)[:, None], 255)


def unit_normals(corners: Points) -> Points:
    """The normal of each face, `(num_faces, 3)`; zero for a face without an area."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(lengths == 0, 1, lengths)


def embree_scene(vertices: Points, faces: NDArray[np.integer]) -> "EmbreeScene":
    """The mesh in Embree's tree."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise ImportError(f"Rendering needs `embreex`; {RENDER_INSTALL}.") from error
    scene = EmbreeScene()
    TriangleMesh(scene=scene, vertices=vertices, indices=faces.astype(np.int32))
    return scene
