import numpy as np
import pytest

from datasets_scripts.meshes import check_mesh, load_mesh, voxels_to_mesh
from datasets_scripts.solids import ball, beam, box, prism, ring

trimesh = pytest.importorskip("trimesh")

OBJ = """mtllib two.mtl
v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
usemtl red
f 1 2 3
usemtl blue
f 1 2 4
"""
MTL = "newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n"


def signed_volume(mesh):
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize(
    ("mesh", "volume"),
    [
        (box((0, 0, 0), (1, 2, 3), (9, 9, 9)), 6),
        (prism((0, 0, 0), (1, 1), 2, (9, 9, 9), sides=200), 2 * np.pi),
        (prism((0, 5, 0), (1, 0), 3, (9, 9, 9), sides=200), np.pi),
        (beam((0, 0, 0), (1, 2, 0), 0.5, (9, 9, 9)), 0.5),
        (ball((3, 0, 0), (1, 2, 1), (9, 9, 9), rings=100), 8 / 3 * np.pi),
        (ring((0, 0, 0), 2, 1, 1, (9, 9, 9)), np.pi**2),
    ],
    ids=["box", "cylinder", "cone", "beam", "ellipsoid", "torus"],
)
def test_solids_are_closed_and_face_outwards(mesh, volume):
    check_mesh(mesh)
    assert signed_volume(mesh) == pytest.approx(volume, rel=0.05)


def test_obj_with_materials_has_their_colours(tmp_path):
    (tmp_path / "two.obj").write_text(OBJ)
    (tmp_path / "two.mtl").write_text(MTL)
    assert sorted(map(tuple, load_mesh(tmp_path / "two.obj").face_colours.tolist())) == [(0, 0, 255), (255, 0, 0)]


def test_glb_scenes_are_flattened_with_their_transforms(tmp_path):
    scene = trimesh.Scene()
    for place, colour in ((0, (255, 0, 0, 255)), (5, (0, 0, 255, 255))):
        part = trimesh.creation.box()
        part.visual.vertex_colors = colour  # trimesh writes colours of faces with scipy alone
        scene.add_geometry(part, transform=trimesh.transformations.translation_matrix([place, 0, 0]))
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    right = mesh.vertices[mesh.faces].mean(axis=1)[:, 0] > 2
    assert mesh.vertices[:, 0].max() == pytest.approx(5.5)
    assert (mesh.face_colours[right] == (0, 0, 255)).all()
    assert (mesh.face_colours[~right] == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["ply", "stl"])
def test_ply_and_stl_load(tmp_path, suffix):
    part = trimesh.creation.box()
    part.visual.vertex_colors = (10, 200, 30, 255)
    part.export(tmp_path / f"box.{suffix}")
    mesh = load_mesh(tmp_path / f"box.{suffix}")
    assert len(mesh.faces) == 12
    if suffix == "ply":
        assert (mesh.face_colours == (10, 200, 30)).all()


def test_a_texture_gives_each_face_its_pixel(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (2, 1), (255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [3, 0, 0], [2, 1, 0]], dtype=float)
    uv = np.array([[0.0, 0], [0.1, 0], [0, 0], [0.9, 0], [1, 0], [1, 0]])
    visual = trimesh.visual.TextureVisuals(uv=uv, image=picture)
    trimesh.Trimesh(vertices, [[0, 1, 2], [3, 4, 5]], visual=visual, process=False).export(tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    left = mesh.vertices[mesh.faces].mean(axis=1)[:, 0] < 1.5
    assert (mesh.face_colours[left] == (255, 0, 0)).all()
    assert (mesh.face_colours[~left] == (0, 255, 0)).all()


def test_z_up_files_are_turned_upright(tmp_path):
    trimesh.creation.box(extents=(1, 2, 7)).export(tmp_path / "tower.stl")
    size = np.ptp(load_mesh(tmp_path / "tower.stl", up="z").vertices, axis=0)
    np.testing.assert_allclose(size, (1, 7, 2))
    assert signed_volume(load_mesh(tmp_path / "tower.stl", up="z")) > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", "v 0 0 0\n", "'.*a.obj'.*(no triangles|can't be read)"),
        ("a.glb", "not a glb", "'.*a.glb' can't be read as a mesh"),
        ("a.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "'.*a.obj'.*(no triangles|must be finite)"),
        ("a.txt", "", "must be an existing file that ends in one of"),
    ],
)
def test_broken_mesh_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_mesh(tmp_path / name)


def test_missing_files_and_unknown_axes_are_named(tmp_path):
    with pytest.raises(ValueError, match="existing file"):
        load_mesh(tmp_path / "none.obj")
    (tmp_path / "a.obj").write_text(OBJ)
    with pytest.raises(ValueError, match="`up` must be 'y' or 'z', got 'x'"):
        load_mesh(tmp_path / "a.obj", up="x")


def test_voxels_show_only_sides_without_a_neighbour():
    grid = np.zeros((4, 4, 4, 4), dtype=np.uint8)
    grid[1:3, 1:3, 1:3] = (200, 10, 10, 255)
    mesh = voxels_to_mesh(grid)
    assert len(mesh.faces) == 6 * 4 * 2
    assert signed_volume(mesh) == pytest.approx(8)
    assert (mesh.face_colours == (200, 10, 10)).all()


def test_voxels_keep_their_place_and_colour_up_to_the_edge_of_the_grid():
    grid = np.zeros((3, 2, 2, 4), dtype=np.uint8)
    grid[0, 0, 0], grid[2, 1, 1] = (255, 0, 0, 255), (0, 0, 255, 255)
    mesh = voxels_to_mesh(grid)
    blue = (mesh.face_colours == (0, 0, 255)).all(axis=1)
    assert len(mesh.faces) == 24
    np.testing.assert_array_equal(mesh.vertices[mesh.faces[blue]].reshape(-1, 3).min(axis=0), (2, 1, 1))
    np.testing.assert_array_equal(mesh.vertices[mesh.faces[~blue]].reshape(-1, 3).max(axis=0), (1, 1, 1))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (np.zeros((2, 2, 2, 4), np.uint8), "must have a filled voxel"),
        (np.zeros((2, 2, 2), np.uint8), "must be a uint8 grid"),
        (np.zeros((2, 2, 2, 4)), "must be a uint8 grid"),
    ],
)
def test_bad_voxel_grids_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        voxels_to_mesh(grid)
