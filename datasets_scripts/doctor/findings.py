"""What the data doctor can find, how bad each kind is, and what mends it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
IMAGES, CAPTIONS = "images", "captions"


class Kind(NamedTuple):
    """A kind of finding: how bad it is, its heading, and what to do."""

    severity: str
    title: str
    mend: str


KINDS = {
    "unreadable": Kind(ERROR, "The data set can't be read", "Repair what the message names; nothing else was checked."),
    "broken_row": Kind(ERROR, "Rows that can't be read", "Repair the line, or drop it."),
    "missing_column": Kind(ERROR, "Rows without a column", "Give every row `instance_id`, `images` and `captions`."),
    "wrong_type": Kind(ERROR, "Values of the wrong type", "Write folds as lists, paths and categories as strings."),
    "bad_id": Kind(ERROR, "Ids that are missing or no text", "Give the row an id of its own, a non-blank string."),
    "repeated_id": Kind(ERROR, "Ids that come twice in a split", "Merge the rows into one instance or rename one."),
    "leaked_id": Kind(ERROR, "Ids in several splits", "Keep the instance in one split, best the one it is tested in."),
    "alike_id": Kind(WARNING, "Ids that differ in case or spaces only", "Merge the instances if they are one."),
    "unknown_split": Kind(ERROR, "Splits of another name", "Call it `train`, `validation` or `test`."),
    "missing_split": Kind(ERROR, "Rows without a split among rows with one", "Give every row a split, or none."),
    "empty_instance": Kind(ERROR, "Instances with neither images nor captions", "Give it one, or drop it."),
    "no_images": Kind(WARNING, "Instances without images", "Add one; without, its captions are negatives only."),
    "no_captions": Kind(WARNING, "Instances without captions", "Add one; without, its images are negatives only."),
    "outsized_fold": Kind(NOTE, "Folds far larger than others", "See whether several instances were merged into one."),
    "missing_image": Kind(ERROR, "Images that aren't there", "Add the file, or take it off the list."),
    "outside_image": Kind(ERROR, "Image paths that leave the folder", "Move the file into the folder."),
    "broken_image": Kind(ERROR, "Files that are no images", "Replace the file, or take it off the list."),
    "truncated_image": Kind(ERROR, "Images that end too early", "Fetch the file again, or take it off the list."),
    "huge_image": Kind(ERROR, "Images that are too large", "Shrink the image, or raise `--max_pixels`."),
    "tiny_image": Kind(WARNING, "Images that are too small", "Replace it by a larger one, or take it off the list."),
    "blank_image": Kind(WARNING, "Images of a single colour", "Render or fetch it again, or take it off the list."),
    "stretched_image": Kind(NOTE, "Images far longer than wide, or wider than long", "Crop it, or pad it to a square."),
    "repeated_image": Kind(WARNING, "Equal images in one instance", "Keep one: the fold counts it several times."),
    "near_repeated_image": Kind(NOTE, "Nearly equal images in one instance", "Keep one, unless the thing is symmetric."),
    "shared_image": Kind(WARNING, "Equal images of different instances", "Find out whose it is, or merge the instances."),
    "near_shared_image": Kind(NOTE, "Nearly equal images of different instances", "Merge the instances if they are one."),
    "leaked_image": Kind(ERROR, "Equal images in different splits", "Take it out of the split that is trained on."),
    "near_leaked_image": Kind(WARNING, "Nearly equal images in different splits", "Keep alike instances in one split."),
    "unlisted_file": Kind(NOTE, "Image files that no row lists", "List them, or delete them."),
    "bad_caption": Kind(ERROR, "Captions that are no text", "Write the caption as a string, or drop it."),
    "blank_caption": Kind(ERROR, "Blank captions", "Drop it."),
    "wordless_caption": Kind(WARNING, "Captions without a word", "Drop it."),
    "placeholder_caption": Kind(WARNING, "Captions that stand for none", "Drop it."),
    "garbled_caption": Kind(WARNING, "Captions with markup, addresses or broken characters", "Clean it where it is made."),
    "repeated_caption": Kind(WARNING, "Equal captions in one instance", "Keep one: the fold counts it several times."),
    "shared_caption": Kind(WARNING, "Equal captions of different instances", "Say more in it, or drop it."),
    "leaked_caption": Kind(WARNING, "Equal captions in different splits", "Say more in it, or drop it where it is trained on."),
    "near_shared_caption": Kind(NOTE, "Nearly equal captions of different instances", "Say more in it where they differ."),
    "near_leaked_caption": Kind(NOTE, "Nearly equal captions in different splits", "See whether the instances are one."),
    "generic_caption": Kind(WARNING, "Captions that fit many instances", "Say more in it, or drop it."),
    "long_caption": Kind(WARNING, "Captions over the tokenizer's limit", "Shorten it: the end is cut off."),
    "false_negatives": Kind(
        WARNING, "Batches with false negatives", "Mend equal captions and images, or use smaller batches or soft targets."
    ),
    "missing_category": Kind(NOTE, "Instances without a category", "Give every row one, or none."),
    "rare_category": Kind(NOTE, "Categories with few instances", "Merge it into another; its score is mostly chance."),
    "dominant_category": Kind(WARNING, "A category that is nearly all", "Report scores by category; add others."),
    "unseen_category": Kind(WARNING, "Categories that are tested but not trained on", "Split each category alike."),
}  # fmt: skip


class Place(NamedTuple):
    """Where something was found: a row, or one observation of its images or captions."""

    row: int
    fold: str = ""
    number: int = 0


@dataclass(frozen=True)
class Finding:
    """One thing found, and what the cleaned copy leaves out or writes otherwise for it."""

    kind: str
    message: str
    places: Sequence[Place] = ()
    drops: Sequence[Place] = ()
    is_changed: bool = False  # the doctor read the value as something else, and so writes it

    @property
    def severity(self) -> str:
        """How bad it is."""
        return KINDS[self.kind].severity


class LooseRow(NamedTuple):
    """A row as far as it could be read: nothing in it is promised to be good."""

    place: str  # in the metadata or the table
    instance_id: str  # "" where there is none
    split: str
    images: list[str]  # names, for messages
    captions: list[str]  # "" where there is no text
    category: str | None


class RawRow(NamedTuple):
    """A row as it stands in the data set, or why it can't be read."""

    place: str
    split: str | None  # of a table; a folder's rows name their own
    values: dict[str, object] | None
    problem: str = ""


class Source(Protocol):
    """Where rows and pictures come from; each can be read more than once."""

    name: str

    def raw_rows(self) -> Iterable[RawRow]:
        """All rows, in the same order each time."""

    def images_of(self, row: int) -> list[bytes | None]:
        """The image files of a row, None for one that isn't there."""

    def image_problem(self, image: object) -> tuple[str, str] | None:
        """The kind and message of what is wrong with an image as the row names it, before it is opened."""

    def unlisted_files(self, rows: Sequence[LooseRow]) -> list[str]:
        """Image files that no row lists."""


@dataclass
class Corpus:
    """All rows of a data set, and where their pictures are."""

    source: Source
    rows: list[LooseRow]

    @property
    def num_instances(self) -> int:
        """How many different ids there are; rows without one count each."""
        return len({row.instance_id or number for number, row in enumerate(self.rows)})

    def value_at(self, place: Place) -> str:
        """The name of the image or the caption that stands there; the id for a row."""
        row = self.rows[place.row]
        return getattr(row, place.fold)[place.number] if place.fold else row.instance_id


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first names, quoted, and how many more there are."""
    texts = [repr(str(name)) for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
