import numpy as np
import pytest
from PIL import Image

from datasets_scripts.sample_sheet import main, sample_sheet

ROW = {"instance_id": "a", "images": [Image.new("RGB", (8, 8), "red")] * 4, "captions": ["a red a"], "category": None}


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_sheet_shows_views_and_captions(tmp_path):
    sample_sheet([ROW, ROW | {"images": []}], tmp_path / "sheet.png", num_views=3, view_size=20)
    sheet = opened(tmp_path / "sheet.png")
    red = (sheet == (255, 0, 0)).all(axis=2)
    assert red.sum() == 3 * 20 * 20
    assert (sheet[:, 3 * 28 :] < 128).any()


def test_transparent_views_lie_on_white(tmp_path):
    sample_sheet([ROW | {"images": [Image.new("RGBA", (8, 8))], "captions": []}], tmp_path / "s.png", 1, 20)
    assert (opened(tmp_path / "s.png")[:20, :20] == 255).all()


def test_long_captions_make_the_line_higher(tmp_path):
    sample_sheet([ROW | {"captions": ["word " * 200]}], tmp_path / "s.png", 1, 20)
    assert opened(tmp_path / "s.png").shape[0] > 200


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows` must hold at least one row"):
        sample_sheet([], tmp_path / "s.png")


def test_the_command_line_draws_a_folder(tmp_path):
    Image.new("L", (6, 6)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"instance_id": "a", "images": ["a.png"], "captions": ["a"], "split": "train"}'
    )
    main([str(tmp_path), "--output", str(tmp_path / "sheet.png"), "--num-views", "2", "--view-size", "30"])
    assert opened(tmp_path / "sheet.png").shape[1] > 60
