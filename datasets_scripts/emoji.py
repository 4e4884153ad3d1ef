"""The emoji corpus: one emoji drawn by up to nine design teams and named by several vocabularies, from npm packages.

In an empty folder run the command that `python -m datasets_scripts.emoji` writes; then load or build with `data_dir`
set to that folder.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from datasets import BuilderConfig, DatasetInfo, DownloadManager, Features, List, SplitGenerator, Value
from PIL import Image

from .emoji_icons import Icon, read_icons
from .emoji_packages import Installed, npm_install, npm_name, packages
from .emoji_words import Caption, captions_of, read_words
from .schema import FEATURES, SPLITS, RowBuilder, split_of
from .svg import render_svg

VERSION = "1.0.0"
SPLIT_SALT = "mxm-emoji-0:"
MAX_SIZE = 1024
SOURCES = {"image_sources": List(Value("string")), "caption_sources": List(Value("string"))}


class ListedEmoji(NamedTuple):
    """An emoji before its icons are drawn."""

    instance_id: str
    group: str
    icons: list[Icon]
    captions: list[Caption]


@dataclass
class EmojiConfig(BuilderConfig):
    """Settings of `Emoji`; the cache's name holds them and the versions of the packages."""

    version: str = VERSION
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the npm packages; `python -m datasets_scripts.emoji` writes what to run there."
        },
    )
    share_alike: bool = field(
        default=False,
        metadata={
            "help": "Also draw OpenMoji and EmojiOne 1 (CC-BY-SA-4.0): who passes the data set on must then do so "
            "under that licence."
        },
    )
    image_size: int = field(default=128, metadata={"help": "Pixels along each side of a view."})
    min_views: int = field(default=4, metadata={"help": "An emoji that fewer sets draw is left out."})
    min_captions: int = field(default=3, metadata={"help": "An emoji with fewer captions is left out."})
    max_captions: int = field(default=8, metadata={"help": "Captions of an emoji, at most."})

    def create_config_id(self, config_kwargs: dict[str, object], custom_features: Features | None = None) -> str:
        """The cache's name."""
        check_config(self)
        self.data_dir = str(Path(str(self.data_dir)).resolve())
        versions = json.dumps(self.installed.versions(), sort_keys=True)
        name = super().create_config_id(config_kwargs | {"data_dir": self.data_dir}, custom_features)
        return f"{name}-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"

    @property
    def installed(self) -> Installed:
        """The packages."""
        return Installed(Path(str(self.data_dir)), self.share_alike)


class Emoji(RowBuilder):
    """Emoji as instances, each set's drawing a view, each vocabulary's words a caption.

    `image_sources` and `caption_sources` say where each is from. Skin tones, components and regional letters are no
    instances. The same packages give the same rows, to the pixel.
    """

    BUILDER_CONFIG_CLASS = EmojiConfig
    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> DatasetInfo:
        used = packages(self.config.share_alike)
        return DatasetInfo(
            description=describe(self.config),
            features=Features(FEATURES | SOURCES),
            license=", ".join(sorted({package.license for package in used.values()})),
        )

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        by_split: dict[str, list[ListedEmoji]] = {split: [] for split in SPLITS}
        for emoji in list_emoji(self.config):
            by_split[split_of(emoji.instance_id, SPLIT_SALT)].append(emoji)
        return [SplitGenerator(split, {"listed": found}) for split, found in by_split.items() if found]

    def _generate_examples(self, listed: list[ListedEmoji]) -> Iterator[tuple[str, dict[str, object]]]:
        for emoji in listed:
            yield emoji.instance_id, build_row(emoji, self.config.image_size)


def check_config(config: EmojiConfig) -> None:
    """Raise ValueError unless every setting can be used."""
    if not config.data_dir:
        raise ValueError(
            f"`data_dir` must be the folder in which you ran `{npm_install(config.share_alike)}`, got none."
        )
    limits = {"image_size": (1, MAX_SIZE), "min_views": (1, 9), "min_captions": (1, 100), "max_captions": (1, 100)}
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"`{name}` must be a whole number within {least} and {most}, got {value!r}.")
    if not isinstance(config.share_alike, bool):
        raise ValueError(f"`share_alike` must be True or False, got {config.share_alike!r}.")


def describe(config: EmojiConfig) -> str:
    """What the data set is, and the licence of everything in it, in Markdown."""
    versions = config.installed.versions()
    lines = [
        "One instance is one emoji. Its images are the drawings of several design teams, its captions the words of "
        "several vocabularies; `image_sources` and `caption_sources` say whose each of them is, so that any can be "
        "left out again.",
        "",
        "| npm package | version | licence | source |",
        "|---|---|---|---|",
        *(
            f"| `{npm_name(name)}` | {versions[name]} | {package.license} | {package.source} |"
            for name, package in packages(config.share_alike).items()
        ),
    ]
    if config.share_alike:
        lines += [
            "",
            "It holds drawings under CC-BY-SA-4.0: whoever passes on the whole must do so under that licence.",
        ]
    return "\n".join(lines)


def list_emoji(config: EmojiConfig) -> Iterator[ListedEmoji]:
    """The emoji with enough icons and captions, in the order of Unicode.

    Raises:
        RowError: If a package is missing or has another form.
    """
    words = read_words(config.installed)
    icons = read_icons(config.installed, words)
    for emoji in words:
        found = icons[emoji.instance_id]
        names = {icon.icon_set: icon.name for icon in found}
        captions = captions_of(emoji, names, config.min_captions, config.max_captions)
        if len(found) >= config.min_views and len(captions) >= config.min_captions:
            yield ListedEmoji(emoji.instance_id, emoji.group, found, captions)


def build_row(emoji: ListedEmoji, size: int) -> dict[str, object]:
    """The row of an emoji; a drawing that another set has too, to the pixel, comes once."""
    views: dict[bytes, tuple[str, Image.Image]] = {}
    for icon in emoji.icons:
        view = render_svg(icon.drawing, size)
        views.setdefault(view.tobytes(), (icon.icon_set, view))
    return {
        "instance_id": emoji.instance_id,
        "images": [{"bytes": png(view), "path": f"{emoji.instance_id}/{name}.png"} for name, view in views.values()],
        "captions": [caption.text for caption in emoji.captions],
        "category": emoji.group,
        "image_sources": [name for name, _ in views.values()],
        "caption_sources": [caption.source for caption in emoji.captions],
    }


def png(view: Image.Image) -> bytes:
    """The view as a PNG file."""
    buffer = BytesIO()
    view.save(buffer, format="PNG")
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the command that installs the packages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--share_alike", action="store_true", help="With the two share-alike sets.")
    sys.stdout.write(npm_install(parser.parse_args(arguments).share_alike) + "\n")


if __name__ == "__main__":
    main()
