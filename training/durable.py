"""Files that a crash, or a machine that loses power, leaves as they were or as they will be."""

import hashlib
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

UNFINISHED = ".unfinished"  # ends the name of what is being written, beside its place


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    # Some file systems of networks sync no folders; a file that can't be synced is an error.
    may_fail = suppress(OSError) if path.is_dir() else nullcontext()
    try:
        with may_fail:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the disk hold a folder with all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file, of text in UTF-8 or of bytes, that is whole or not there, whatever dies when."""
    beside = path.with_name(f".{path.name}{UNFINISHED}")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder in the place of another; a crash between the two renames leaves what `restore_folder` mends."""
    sync_tree(source)
    old = old_of(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Put back what a crash in `replace_folder` left without its name."""
    if not target.exists() and old_of(target).exists():
        old_of(target).rename(target)


def old_of(target: Path) -> Path:
    """The name that a folder has while another takes its place."""
    return target.with_name(f".{target.name}.old")


def remove_folder(folder: Path) -> None:
    """Remove a folder, and what is left of an interrupted removal; under its name it is whole or not there."""
    old = old_of(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give weights, which nobody writes to in place, a second name; copy all else, and where that is not possible."""
    Path(target).unlink(missing_ok=True)
    if Path(source).suffix == ".safetensors":
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
