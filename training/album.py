"""Small pictures of a data set's images, as data URIs that a page can hold."""

import base64
import io

from PIL import Image, ImageOps

from training.data import RawRows, decode_image
from training.searches import Embeddings, places_in_folds

PICTURE_PIXELS = 112
JPEG_QUALITY = 82


class Album:
    """Pictures of the images that rows of embeddings came from, each made once, when it is asked for.

    Args:
        rows: The split that was embedded.
        embeddings: Its embeddings, each fold's images in the order of the row.
    """

    def __init__(self, rows: RawRows, embeddings: Embeddings) -> None:
        self.rows = rows
        self.instance_ids = [embeddings.instance_ids[group_id] for group_id in embeddings.image_group_ids.tolist()]
        self.places = places_in_folds(embeddings.image_group_ids).tolist()
        self.row_of = {instance_id: row for row, instance_id in enumerate(rows.column("instance_id"))}
        self.made: dict[int, str] = {}

    def picture(self, image_row: int) -> str:
        """The picture of a row of `image_embeds`.

        Raises:
            ValueError: If the image can't be read.
        """
        if image_row not in self.made:
            instance_id = self.instance_ids[image_row]
            fold = self.rows[self.row_of[instance_id]]["images"]
            self.made[image_row] = as_jpeg_uri(decode_image(fold[self.places[image_row]], instance_id))
        return self.made[image_row]


def as_jpeg_uri(image: Image.Image) -> str:
    """An RGB image, within a square of `PICTURE_PIXELS` on white, as a JPEG of a few kilobytes."""
    square = ImageOps.pad(image, (PICTURE_PIXELS, PICTURE_PIXELS), color="white")
    buffer = io.BytesIO()
    square.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
