import math

import numpy as np
import pytest
from PIL import Image

from training.plots import GREEN, GridQuery, GridResult, plot_curves, retrieval_grid


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def count_color(path, color: str) -> int:
    """Pixels of a colour, antialiased ones apart."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels(path) - wanted).max(axis=2) <= 2).sum())


def query(caption: str = "a red chair", hits: tuple[bool, ...] = (False, True), **image) -> GridQuery:
    picture = Image.new(**({"mode": "RGB", "size": (20, 20), "color": "white"} | image))
    return GridQuery(caption, picture, [GridResult(picture, 0.5, is_hit) for is_hit in hits])


HISTORY = [{"step": step, "train/loss": 5.0 / step, "train/lr": 0.1, "train/scale": 14.0} for step in range(1, 60)]
HISTORY += [{"step": step, "eval/text_to_instance_rr@1": step / 100} for step in (20, 40)]


def test_each_logged_group_of_values_gets_a_panel(tmp_path):
    plot_curves(HISTORY, tmp_path / "four.png")
    plot_curves([{"step": 1, "train/loss": 1.0}], tmp_path / "one.png")
    four, one = (size(tmp_path / name) for name in ("four.png", "one.png"))
    assert four == (one[0] * 3, one[1] * 2)


def test_order_of_the_history_does_not_matter(tmp_path):
    plot_curves(HISTORY, tmp_path / "forward.png")
    plot_curves(HISTORY[::-1], tmp_path / "backward.png")
    assert (pixels(tmp_path / "forward.png") == pixels(tmp_path / "backward.png")).all()


def test_a_loss_that_diverged_is_a_gap(tmp_path):
    diverged = [entry | {"train/loss": math.nan} for entry in HISTORY[30:50]]
    plot_curves([*HISTORY[:30], *diverged, {"step": 61, "train/loss": math.inf}], tmp_path / "curves.png")
    plot_curves([{"step": 0, "train/loss": math.nan, "eval/text_to_instance_rr@1": math.nan}], tmp_path / "none.png")


def test_an_empty_history_is_an_error(tmp_path):
    for history in ([], [{"step": 1, "other": 2.0}]):
        with pytest.raises(ValueError, match="no curve to draw; log 'train/loss'"):
            plot_curves(history, tmp_path / "curves.png")


def test_hits_alone_have_a_green_frame(tmp_path):
    retrieval_grid([query(hits=(False, False, False))], tmp_path / "misses.png")
    retrieval_grid([query(hits=(False, True, False))], tmp_path / "hit.png")
    retrieval_grid([query(hits=(True, True, False))], tmp_path / "hits.png")
    green = [count_color(tmp_path / f"{name}.png", GREEN) for name in ("misses", "hit", "hits")]
    assert green[0] == 0
    assert green[2] == pytest.approx(2 * green[1], rel=0.05)


@pytest.mark.parametrize("caption", ["", "$x_{", "100 % of $5\n\tand $6", "x" * 500, "word " * 200, "\U0001f600 椅子"])
def test_any_caption_can_be_drawn(tmp_path, caption):
    retrieval_grid([query(caption)], tmp_path / "grid.png")
    assert size(tmp_path / "grid.png")[0] > 100


def test_queries_may_have_fewer_results_than_others(tmp_path):
    retrieval_grid([query(hits=(True,)), query(hits=()), query(hits=(False,) * 5)], tmp_path / "grid.png")
    retrieval_grid([query(hits=(False,) * 5)], tmp_path / "row.png")
    grid, row = (size(tmp_path / name) for name in ("grid.png", "row.png"))
    assert grid[0] == row[0]


def test_images_of_any_size_keep_the_size_of_the_grid(tmp_path):
    for width, height in ((1, 1), (300, 20), (20, 900)):
        retrieval_grid([query(size=(width, height), color="black")], tmp_path / f"{width}.png")
    assert len({size(tmp_path / f"{width}.png") for width in (1, 300, 20)}) == 1


def test_a_grid_without_results_is_an_error(tmp_path):
    for queries in ([], [query(hits=())]):
        with pytest.raises(ValueError, match="`queries` must hold a query with at least one result"):
            retrieval_grid(queries, tmp_path / "grid.png")
