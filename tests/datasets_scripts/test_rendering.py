import numpy as np
import pytest

from datasets_scripts import rendering
from datasets_scripts.meshes import ColouredMesh, join_meshes
from datasets_scripts.rendering import Camera, render_views
from datasets_scripts.solids import ball, box

RED, BLUE, GREEN, GREY = (220, 20, 20), (20, 20, 220), (20, 200, 20), (128, 128, 128)


def is_like(pixels, colour):
    """Where the pixels have the hue of the colour, however bright: each channel in the same proportion."""
    shape = pixels.astype(float) / np.maximum(pixels.max(axis=-1, keepdims=True), 1)
    return (np.abs(shape - np.array(colour) / max(colour)) < 0.1).all(axis=-1)


def cube(colour, middle=(0, 0, 0), half=0.5):
    return box([c - half for c in middle], [c + half for c in middle], colour)


def test_a_red_cube_renders_red_on_white():
    views = render_views(cube(RED), num_views=4, size=32)
    assert views.shape == (4, 32, 32, 3)
    assert views.dtype == np.uint8
    assert is_like(views[:, 14:18, 14:18], RED).all()
    assert (views[:, 0] == 255).all()
    assert (views[:, -1] == 255).all()


def test_what_is_behind_is_hidden_and_seen_from_the_other_side():
    two = join_meshes([cube(RED, (0, 0, 1), 0.5), cube(BLUE, (0, 0, -1), 0.5)])
    front, back = render_views(two, num_views=2, size=64, camera=Camera(elevation=0))
    assert is_like(front, RED).any()
    assert not is_like(front, BLUE).any()
    assert is_like(back, BLUE).any()
    assert not is_like(back, RED).any()


def test_up_is_up_and_right_is_right():
    marks = [cube(GREY), cube(RED, (0, 0.9, 0), 0.3), cube(GREEN, (0.9, 0, 0), 0.3)]
    view = render_views(join_meshes(marks), num_views=1, size=64, camera=Camera(elevation=10))[0]
    (red_rows, _), (_, green_columns) = np.nonzero(is_like(view, RED)), np.nonzero(is_like(view, GREEN))
    assert red_rows.max() < 32
    assert green_columns.min() > 32


def test_the_next_view_is_from_further_right():
    marks = join_meshes([cube(GREY), cube(GREEN, (0.9, 0, 0), 0.3)])
    views = render_views(marks, num_views=4, size=64, camera=Camera(elevation=0))
    areas = is_like(views, GREEN).sum(axis=(1, 2))
    assert areas[1] == areas.max()
    assert areas[3] == 0


def test_views_of_an_uneven_shape_differ():
    views = render_views(join_meshes([cube(RED), cube(BLUE, (0.8, 0, 0.3), 0.3)]), num_views=12, size=24)
    assert len({view.tobytes() for view in views}) == 12


def test_a_known_point_lands_on_the_known_pixel():
    # A diamond of diagonal 1 around the origin; the speck at x = 0.25, y = 0.125 seen from distance 2, level.
    corners = np.array([[0.5, 0, 0], [-0.5, 0, 0], [0, 0.5, 0], [0, -0.5, 0]]) / np.sqrt(2)
    speck = np.array([[0.25, 0.125, 0], [0.26, 0.125, 0], [0.25, 0.135, 0]])
    faces = np.array([[0, 0, 1], [2, 2, 3], [4, 5, 6]])  # only the last one has an area
    mesh = ColouredMesh(np.concatenate([corners, speck]), faces, np.full((3, 3), 0, dtype=np.uint8))
    camera = Camera(elevation=0, distance=2)
    view = render_views(mesh, num_views=1, size=512, camera=camera, samples=1)[0]
    rows, columns = np.nonzero((view < 255).any(axis=2))
    scale = 256 / (2 * np.tan(np.radians(30)))
    assert columns.min() == pytest.approx(256 + 0.25 * scale, abs=1)
    assert rows.max() + 1 == pytest.approx(256 - 0.125 * scale, abs=1)


def test_elevation_shows_the_top():
    roof = join_meshes([box((-1, -1, -1), (1, 0.9, 1), BLUE), box((-1, 0.9, -1), (1, 1, 1), RED)])
    level = render_views(roof, num_views=1, size=32, camera=Camera(elevation=0))[0]
    above = render_views(roof, num_views=1, size=32, camera=Camera(elevation=80))[0]
    assert is_like(level, BLUE).sum() > is_like(level, RED).sum()
    assert is_like(above, RED).sum() > is_like(above, BLUE).sum()


def test_the_default_distance_cuts_nothing_and_wastes_little():
    views = render_views(box((-1, 0, -0.1), (1, 0.2, 0.1), RED), num_views=12, size=64)
    covered = (views < 255).any(axis=(0, 3))
    assert not covered[[0, -1]].any()
    assert not covered[:, [0, -1]].any()
    assert covered.any(axis=0).sum() > 54


def test_size_and_place_of_the_mesh_do_not_matter():
    small = ball((0, 0, 0), (1, 2, 1), GREEN)
    large = small._replace(vertices=small.vertices * 1000 + [5000, -3000, 40])
    views, others = render_views(small, 3, 32).astype(int), render_views(large, 3, 32).astype(int)
    assert np.abs(views - others).mean() < 0.5


def test_bounds_keep_sizes_comparable():
    bounds = np.array([[-1.0, -1, -1], [1, 1, 1]])
    small, large = (render_views(cube(RED, half=half), 1, 64, bounds=bounds) for half in (0.25, 0.5))
    ratio = is_like(large, RED).sum() / is_like(small, RED).sum()
    assert 3.5 < ratio < 5.5


def test_a_face_is_seen_from_both_sides_alike():
    quad = ColouredMesh(
        np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]]), np.array([[0, 1, 2], [0, 2, 3]]),
        np.full((2, 3), 128, dtype=np.uint8),
    )  # fmt: skip
    turned = quad._replace(faces=quad.faces[:, ::-1])
    np.testing.assert_array_equal(render_views(quad, 4, 16), render_views(turned, 4, 16))


def test_shadow_darkens():
    floor, roof = box((-1, -0.1, -1), (1, 0, 1), GREEN), box((-1, 0.5, -1), (1, 0.6, 1), RED)
    bounds = np.array([[-1, -0.1, -1], [1, 0.6, 1]])
    lit, shaded = (render_views(mesh, 1, 64, bounds=bounds)[0] for mesh in (floor, join_meshes([floor, roof])))
    seen = is_like(shaded, GREEN) & is_like(lit, GREEN)
    darker = lit[seen].max(axis=1).astype(int) - shaded[seen].max(axis=1)
    assert seen.any()
    assert darker.min() == 0
    assert darker.max() > 20


def test_white_stands_out_from_the_background():
    views = render_views(cube((255, 255, 255)), 12, 32)
    assert (views[:, 16, 16] < 250).all()


def bad_mesh(**changes):
    return cube(RED)._replace(**changes)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (bad_mesh(faces=np.zeros((0, 3), int), face_colours=np.zeros((0, 3), np.uint8)), "must have faces"),
        (bad_mesh(vertices=np.full((24, 3), np.nan)), "must be finite.*row 0"),
        (bad_mesh(vertices=np.zeros((24, 3))), "must have an extent"),
        (bad_mesh(faces=np.full((12, 3), 24)), "must name rows 0 to 23"),
        (bad_mesh(face_colours=np.zeros((3, 3), np.uint8)), "must have shapes"),
        (bad_mesh(face_colours=np.zeros((12, 3))), "must be uint8"),
    ],
)
def test_a_mesh_that_cannot_be_rendered_is_named(mesh, message):
    with pytest.raises(ValueError, match=message):
        render_views(mesh)


def test_too_many_faces_are_refused(monkeypatch):
    monkeypatch.setattr("datasets_scripts.meshes.MAX_FACES", 11)
    with pytest.raises(ValueError, match="at most 11 faces, got 12"):
        render_views(cube(RED))


@pytest.mark.parametrize("name", ["num_views", "size", "samples"])
@pytest.mark.parametrize("value", [0, 100_000])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must lie within 1 and .*, got {value}"):
        render_views(cube(RED), **{name: value})


@pytest.mark.parametrize("settings", [{"elevation": 90}, {"field_of_view": 180}, {"margin": 0.5}, {"distance": 0}])
def test_impossible_cameras_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Camera(**settings)


def test_a_camera_inside_the_shape_still_renders():
    assert (render_views(cube(RED), 2, 16, Camera(distance=0.1)) < 255).any()


def test_without_embreex_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "embreex.mesh_construction", None)
    with pytest.raises(ImportError, match=r"mxmclr\[render\]"):
        rendering.render_views(cube(RED), 1, 8)
