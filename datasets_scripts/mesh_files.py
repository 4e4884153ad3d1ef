"""The files that a mesh file names: materials and textures, from its folder only, within limits."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image

from .raw_files import check_inside, read_limited
from .raw_images import IMAGE_FORMATS
from .schema import RowError

MAX_NAMED_BYTES = 2**26  # of one material file or texture
MAX_TEXTURE_PIXELS = 2**24


class MeshFiles:
    """A resolver for `trimesh`, which asks it for the content of each file that a mesh names.

    `trimesh` takes a failure for a missing file and goes on; so what is refused is kept, and raised by `check_refused`.
    """

    def __init__(self, mesh: Path, folder: Path) -> None:
        self.mesh, self.folder = mesh, folder
        self.refused: RowError | None = None

    def get(self, name: str) -> bytes:
        """The content of a file by the name that stands in the mesh file."""
        try:
            path = self.path_of(name.strip())
            content = read_limited(path, MAX_NAMED_BYTES)
            check_texture(content, path)
        except RowError as error:
            self.refused = self.refused or error
            raise
        return content

    __getitem__ = get

    def path_of(self, name: str) -> Path:
        """Where the file lies; a material file by another name is taken if there is no doubt which is meant."""
        path = self.mesh.parent / name
        check_inside(path, self.folder)
        if path.exists():
            return path
        if path.suffix.lower() != ".mtl":
            raise FileNotFoundError(name)  # a texture: the material has a colour as well
        return self.renamed_materials(path)

    def renamed_materials(self, path: Path) -> Path:
        """The one material file that can be meant by a missing one: named like the mesh, or alone in the folder."""
        namesake, beside = self.mesh.with_suffix(".mtl"), list(self.mesh.parent.glob("*.mtl"))
        if not namesake.exists() and len(beside) != 1:
            raise RowError(f"'{self.mesh}' names the materials '{path.name}', which aren't beside it; put them there.")
        found = namesake if namesake.exists() else beside[0]
        check_inside(found, self.folder)
        return found

    def check_refused(self) -> None:
        """Raise the first refusal, if there was one."""
        if self.refused:
            raise self.refused


def check_texture(content: bytes, path: Path) -> None:
    """Raise RowError if a file is a picture too large to decode; what isn't a picture is none of our business."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is stricter
            with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as picture:
                pixels = picture.width * picture.height
    except Image.DecompressionBombError as error:
        raise RowError(f"'{path}' is too large a texture ({error}); shrink it.") from error
    except Exception:  # each format's reader fails in its own way
        return
    if pixels > MAX_TEXTURE_PIXELS:
        raise RowError(f"'{path}' may have at most {MAX_TEXTURE_PIXELS} pixels as a texture, got {pixels}; shrink it.")
