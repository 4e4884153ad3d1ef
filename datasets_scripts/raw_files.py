"""Files that nobody vouches for: read within limits, and only where they should lie."""

import stat
from pathlib import Path

from .schema import RowError


def read_limited(path: Path, most_bytes: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        RowError: If there is no such file, it is a pipe or a device, or it holds more.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading the others may never end
            raise RowError(
                f"'{path}' must be a regular file, got a folder, pipe or device; copy its content to a file."
            )
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise RowError(f"'{path}' can't be read ({error}); restore it.") from error
    if len(content) > most_bytes:
        raise RowError(f"'{path}' may hold at most {most_bytes} bytes, got more; is it the right file?")
    return content


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path, all links followed, ends inside the folder; the folder itself may be a link.

    Raises:
        RowError: If it doesn't.
    """
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # circles of links, names too long, NUL
        raise RowError(f"'{path}' can't be followed ({error}); repair the link.") from error
    if not inside:
        raise RowError(f"'{path}' must lie inside '{folder}', got a link out of it; copy the file there.")
