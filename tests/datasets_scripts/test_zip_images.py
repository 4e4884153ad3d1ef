import stat
import zipfile

import pytest

from datasets_scripts.raw_images import read_content
from datasets_scripts.schema import RowError
from datasets_scripts.zip_images import list_zip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images.zip"


def pack(path, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content, mode in members:
            member = zipfile.ZipInfo(name)
            member.external_attr, member.compress_type = mode << 16, compression
            archive.writestr(member, content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_are_found_by_name_in_any_folder(path, compression):
    pack(path, ("x/a.jpg", b"a" * 999, 0), ("b.JPG", b"b", 0), ("x/", b"", 0), ("x/._a.jpg", b"c", 0), ("n.txt", b"d", 0),
         compression=compression)  # fmt: skip
    images = list_zip(path)
    assert {name: read_content(image, "here") for name, image in images.items()} == {
        "a.jpg": b"a" * 999,
        "b.JPG": b"b",
    }


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.jpg", b"a", 0)], "member '../a.jpg' must have a path that stays inside, got one that climbs out"),
        ([("..\\a.jpg", b"a", 0)], r"must have a path that stays inside"),
        ([("/a.jpg", b"a", 0)], "member '/a.jpg' must have a path that stays inside"),
        ([("a.jpg", b"/etc/passwd", stat.S_IFLNK | 0o777)], "member 'a.jpg' must be a plain file, got a link"),
        ([("x/a.jpg", b"a", 0), ("y/a.jpg", b"b", 0)], "images must have different names, got two 'a.jpg'"),
    ],
)
def test_members_that_are_not_to_be_trusted_are_refused(path, members, message):
    pack(path, *members)
    with pytest.raises(RowError, match=message):
        list_zip(path)


def test_other_compressions_and_broken_files_are_refused(path):
    pack(path, ("a.jpg", b"a", 0), compression=zipfile.ZIP_BZIP2)
    with pytest.raises(RowError, match="must be stored or deflated, and not encrypted; unpack the zip"):
        list_zip(path)
    path.write_bytes(b"PK\3\4 no zip")
    with pytest.raises(RowError, match=r"images.zip' can't be read as zip \("):
        list_zip(path)


def test_a_bomb_gives_no_more_than_it_says(path):
    pack(path, ("a.jpg", bytes(50_000_000), 0))
    content = path.read_bytes()
    path.write_bytes(content.replace((50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(RowError, match=r"here: image 'a.jpg' can't be read \(expected 1000 bytes, got more\)"):
        read_content(list_zip(path)["a.jpg"], "here")
