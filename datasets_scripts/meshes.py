"""Triangle meshes with a colour per face: from numpy arrays, from mesh files, from voxel grids."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .mesh_files import MeshFiles
from .raw_files import read_limited
from .schema import RowError

if TYPE_CHECKING:
    import trimesh
    from trimesh.visual import TextureVisuals

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
MAX_FACES = 5_000_000
MAX_MESH_BYTES = 2**28  # so many faces as a binary STL
MAX_VOXEL_SIDES = 500_000  # a solid cube of 128 voxels a side shows 98,304
SMALLEST, LARGEST = 1e-15, 1e15  # lengths that 32-bit numbers can square and compare
RENDER_INSTALL = "install it with `pip install 'mxmclr[render]'`"

# The corners of each side of a unit cube, anticlockwise seen from outside, by (axis, +1 or -1).
CUBE_SIDES = {
    (0, 1): ((1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)),
    (0, -1): ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    (1, 1): ((0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 1, 0)),
    (1, -1): ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    (2, 1): ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)),
    (2, -1): ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
}


class ColouredMesh(NamedTuple):
    """A triangle mesh, y up, with one flat colour a face."""

    vertices: NDArray[np.floating]  # (num_vertices, 3)
    faces: NDArray[np.integer]  # (num_faces, 3), rows of `vertices`
    face_colours: NDArray[np.uint8]  # (num_faces, 3), RGB


def check_mesh(mesh: ColouredMesh) -> None:
    """Check that a mesh can be rendered.

    Raises:
        ValueError: If it is empty, too large, not finite, a point, or its arrays don't fit together.
    """
    vertices, faces, colours = mesh
    if len(faces) == 0 or len(vertices) == 0:
        raise ValueError(f"A mesh must have faces, got {len(vertices)} vertices and {len(faces)} faces; drop it.")
    if len(faces) > MAX_FACES:
        raise ValueError(f"A mesh may have at most {MAX_FACES} faces, got {len(faces)}; simplify it first.")
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,) or colours.shape != (len(faces), 3):
        raise ValueError(
            "`vertices`, `faces` and `face_colours` must have shapes (num_vertices, 3), (num_faces, 3) and "
            f"(num_faces, 3), got {vertices.shape}, {faces.shape} and {colours.shape}."
        )
    if colours.dtype != np.uint8:
        raise ValueError(f"`face_colours` must be uint8 from 0 to 255, got {colours.dtype}; scale and convert them.")
    if not np.isfinite(vertices).all():
        row = int(np.flatnonzero(~np.isfinite(vertices).all(axis=1))[0])
        raise ValueError(f"`vertices` must be finite, got {vertices[row].tolist()} in row {row}; repair the mesh.")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"`faces` must name rows 0 to {len(vertices) - 1}, got {faces.min()} to {faces.max()}.")
    extent = np.ptp(vertices, axis=0).max()
    if not extent > 0:
        raise ValueError("A mesh must have an extent, got one where all vertices are the same point; drop it.")
    if extent < SMALLEST or np.abs(vertices).max() > LARGEST:
        raise ValueError(f"`vertices` must lie within {LARGEST} and {SMALLEST} apart; scale the mesh.")


def join_meshes(meshes: Sequence[ColouredMesh]) -> ColouredMesh:
    """All meshes as one."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return ColouredMesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.face_colours for mesh in meshes]),
    )


def load_mesh(
    path: str | Path, up: str = "y", folder: Path | None = None, max_bytes: int = MAX_MESH_BYTES
) -> ColouredMesh:
    """A mesh file (OBJ with its MTL, GLB, glTF, PLY, STL) as one mesh, its parts where the file's scene puts them.

    Colours are those of faces, vertices or materials; of a texture, the pixel at the middle of each face.

    Args:
        path: The file.
        up: The axis of the file that points up, `"y"` or `"z"`; what comes back has y up.
        folder: The only folder that the materials and textures may lie in; by default the file's own.
        max_bytes: How large the file may be; reading OBJ takes 22 times that in memory.

    Raises:
        ValueError: If the file is missing, of another kind, or holds no mesh that can be rendered.
        RowError: If it names files outside the folder, or is larger than `max_bytes`.
    """
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in MESH_SUFFIXES:
        raise ValueError(f"`path` must be an existing file that ends in one of {list(MESH_SUFFIXES)}, got '{path}'.")
    if up not in ("y", "z"):
        raise ValueError(f"`up` must be 'y' or 'z', got {up!r}.")
    parts = read_parts(path, folder or path.parent, max_bytes)
    if not parts:
        raise ValueError(f"'{path}' holds no triangles; drop it.")
    mesh = join_meshes(parts)
    if up == "z":
        x, y, z = mesh.vertices.T
        mesh = mesh._replace(vertices=np.stack([x, z, -y], axis=1))
    try:
        check_mesh(mesh)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    return mesh


def read_parts(path: Path, folder: Path, max_bytes: int) -> list[ColouredMesh]:
    """The meshes of a file, moved to where its scene puts them."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(f"Reading mesh files needs `trimesh`; {RENDER_INSTALL}.") from error
    files = MeshFiles(path, folder)
    resolver = cast("trimesh.resolvers.Resolver", files)  # its two methods that readers call
    content = BytesIO(read_limited(path, max_bytes))
    try:
        parts = trimesh.load_scene(content, file_type=path.suffix[1:].lower(), resolver=resolver).dump()
        meshes = [coloured_part(part) for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except RowError:
        raise
    except Exception as error:  # each format's reader fails in its own way
        raise ValueError(f"'{path}' can't be read as a mesh ({error}); export it again.") from error
    files.check_refused()
    return meshes


def coloured_part(part: "trimesh.Trimesh") -> ColouredMesh:
    """A trimesh mesh with whatever colours it has, as face colours."""
    colours = getattr(part.visual, "face_colors", None)
    if colours is None:
        colours = texture_colours(part, cast("TextureVisuals", part.visual))
    return ColouredMesh(np.asarray(part.vertices), np.asarray(part.faces), np.asarray(colours, dtype=np.uint8)[:, :3])


def texture_colours(part: "trimesh.Trimesh", visual: "TextureVisuals") -> NDArray[np.uint8]:
    """The material's colour at the middle of each face, `(num_faces, 4)`; a texture takes precedence."""
    material, uv = visual.material, visual.uv
    middles = None if uv is None or len(uv) != len(part.vertices) else uv[part.faces].mean(axis=1)
    colours = None if middles is None else material.to_color(middles)
    if colours is None:
        colours = material.main_color
    return np.broadcast_to(np.asarray(colours, dtype=np.uint8), (len(part.faces), 4))


def voxels_to_mesh(rgba: NDArray[np.uint8]) -> ColouredMesh:
    """The visible sides of a voxel grid's cubes.

    Args:
        rgba: `(x, y, z, 4)` uint8 with y up; a cell is filled where its alpha is not 0.

    Raises:
        ValueError: If it isn't such a grid, nothing in it is filled, or it is in too many pieces.
    """
    if rgba.ndim != 4 or rgba.shape[3] != 4 or rgba.dtype != np.uint8:
        raise ValueError(f"`rgba` must be a uint8 grid (x, y, z, 4), got {rgba.dtype} of shape {rgba.shape}.")
    filled = np.pad(rgba[..., 3] > 0, 1)
    if not filled.any():
        raise ValueError("`rgba` must have a filled voxel, got alpha 0 everywhere; drop the shape.")
    count = sum(int(exposed_sides(filled, axis, step).sum()) for axis, step in CUBE_SIDES)
    if count > MAX_VOXEL_SIDES:
        raise ValueError(f"`rgba` may show at most {MAX_VOXEL_SIDES} sides of cubes, got {count}; use a coarser grid.")
    sides = [voxel_sides(rgba, filled, axis, step) for axis, step in CUBE_SIDES]
    return join_meshes(sides)


def exposed_sides(filled: NDArray[np.bool_], axis: int, step: int) -> NDArray[np.bool_]:
    """Which cells have no filled neighbour on that side; `filled` is padded by one, what comes back isn't."""
    return (filled & ~np.roll(filled, -step, axis=axis))[1:-1, 1:-1, 1:-1]


def voxel_sides(rgba: NDArray[np.uint8], filled: NDArray[np.bool_], axis: int, step: int) -> ColouredMesh:
    """The sides that face one way and have no filled neighbour, two triangles each; `filled` is padded by one."""
    cells = np.argwhere(exposed_sides(filled, axis, step))
    vertices = cells[:, None, :] + np.array(CUBE_SIDES[axis, step])[None]
    first = 4 * np.arange(len(cells))[:, None, None]
    faces = first + np.array([[0, 1, 2], [0, 2, 3]])[None]
    colours = rgba[tuple(cells.T)][:, :3].repeat(2, axis=0)
    return ColouredMesh(vertices.reshape(-1, 3).astype(np.float64), faces.reshape(-1, 3), colours)
