"""The npm packages that the emoji corpus is made of: versions, licences, and their files read with care."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .raw_text import parse_json, parse_object, read_text
from .schema import RowError

JS_TOKEN = re.compile(r"'((?:[^'\\]|\\.)*)'|(\"(?:[^\"\\]|\\.)*\")|(\w+)(?=\s*:)|([\[\]{}:,])|(\S)")


class Package(NamedTuple):
    """An npm package: the version that the published rows were made with, and what its licence asks."""

    version: str
    license: str  # SPDX
    source: str
    share_alike: bool = False


ICON_SETS = {
    "noto": Package("1.2.9", "Apache-2.0", "googlefonts/noto-emoji, flags in the public domain"),
    "twemoji": Package("1.2.5", "CC-BY-4.0", "Twitter"),
    "fluent-emoji-flat": Package("1.2.6", "MIT", "Microsoft"),
    "fluent-emoji": Package("1.2.7", "MIT", "Microsoft"),
    "openmoji": Package("1.2.29", "CC-BY-SA-4.0", "OpenMoji, hfg-gmuend/openmoji", share_alike=True),
    "emojione": Package("1.2.3", "CC-BY-4.0", "EmojiOne, version 2"),
    "noto-v1": Package("1.2.5", "Apache-2.0", "googlefonts/noto-emoji, flags in the public domain"),
    "emojione-v1": Package("1.2.3", "CC-BY-SA-4.0", "EmojiOne, version 1", share_alike=True),
    "fxemoji": Package("1.2.2", "Apache-2.0", "mozilla/fxemoji"),
}
WORDS = {
    "cldr-annotations-full": Package("48.2.0", "Unicode-3.0", "unicode.org"),
    "cldr-annotations-derived-full": Package("48.2.0", "Unicode-3.0", "unicode.org"),
    "unicode-emoji-json": Package("0.9.0", "MIT", "muan/unicode-emoji-json"),
    "emojilib": Package("4.0.3", "MIT", "muan/emojilib"),
    "emojibase-data": Package("17.0.0", "MIT", "milesj/emojibase"),
    "gemoji": Package("8.1.0", "MIT", "wooorm/gemoji"),
    "emoji-datasource": Package("16.0.0", "MIT", "iamcal/emoji-data"),
}


def npm_name(name: str) -> str:
    """What npm calls an icon set or a package of words."""
    return f"@iconify-json/{name}" if name in ICON_SETS else name


def npm_install(share_alike: bool = True) -> str:
    """The command that installs all packages into the folder where it runs."""
    pins = (f"{npm_name(name)}@{package.version}" for name, package in packages(share_alike).items())
    return f"npm install --ignore-scripts --no-audit --no-fund {' '.join(pins)}"


def packages(share_alike: bool) -> dict[str, Package]:
    """The packages, without the share-alike icon sets unless they are asked for."""
    return {name: made for name, made in (ICON_SETS | WORDS).items() if share_alike or not made.share_alike}


class Installed:
    """The packages as they lie in a folder."""

    def __init__(self, folder: Path, share_alike: bool) -> None:
        self.modules = folder if folder.name == "node_modules" else folder / "node_modules"
        self.share_alike = share_alike

    def versions(self) -> dict[str, str]:
        """The installed version of every package that is needed.

        Raises:
            RowError: If one is missing; the message has the command that installs it.
        """
        found = {}
        for name in packages(self.share_alike):
            about = self.json(name, "package.json")
            with understood(name, "package.json"):
                found[name] = str(about["version"])
        return found

    def text(self, name: str, file: str) -> str:
        """The text of a package's file.

        Raises:
            RowError: If it isn't there, or is no text.
        """
        path = self.modules / npm_name(name) / file
        if not path.is_file():
            raise RowError(
                f"The npm package `{npm_name(name)}` isn't in '{self.modules}' (no '{file}'); in the folder above it "
                f"run `{npm_install(self.share_alike)}`."
            )
        return read_text(path)

    def json(self, name: str, file: str) -> dict[str, Any]:
        """The JSON object in a package's file.

        Raises:
            RowError: If it isn't there, or is no object.
        """
        return parse_object(self.text(name, file), f"{npm_name(name)}/{file}", "a JSON object")

    def json_list(self, name: str, file: str) -> list[Any]:
        """The JSON list in a package's file.

        Raises:
            RowError: If it isn't there, or is no list.
        """
        return parse_list(self.text(name, file), f"{npm_name(name)}/{file}")

    def js_list(self, name: str, file: str) -> list[Any]:
        """The list of plain data that a JavaScript module's file assigns to something, the first one in it.

        Raises:
            RowError: If it isn't there, or holds anything but lists, objects and strings.
        """
        text = self.text(name, file)
        begin, end = text.find("= ["), text.find("\n]")
        if begin < 0 or end < begin:
            raise RowError(f"{npm_name(name)}/{file}: expected `= [ … ]`, got none; install the package again.")
        return parse_list(
            js_to_json(text[begin + 2 : end + 2], f"{npm_name(name)}/{file}"), f"{npm_name(name)}/{file}"
        )


def parse_list(text: str, place: str) -> list[Any]:
    """The JSON list.

    Raises:
        RowError: If it isn't one.
    """
    value = parse_json(text, place, "a JSON list")
    if not isinstance(value, list):
        raise RowError(f"{place}: expected a JSON list, got {type(value).__name__}; install the package again.")
    return value


def js_to_json(text: str, place: str) -> str:
    """JSON for a JavaScript literal: keys and single-quoted strings in double quotes.

    Raises:
        RowError: If it holds anything but lists, objects and strings.

    Example:
        >>> js_to_json("[{names: ['+1'], tags: ['a b']}]", "here")
        '[{"names":["+1"],"tags":["a b"]}]'
    """
    parts = []
    for single, double, key, mark, other in JS_TOKEN.findall(text):
        if other:
            raise RowError(f"{place}: expected lists, objects and strings, got {other!r}; install the package again.")
        parts.append(mark or double or json.dumps(key or single.replace("\\'", "'"), ensure_ascii=False))
    return "".join(parts)


@contextmanager
def understood(name: str, file: str) -> Iterator[None]:
    """Turn what goes wrong with data of an unexpected shape into a RowError."""
    try:
        yield
    except RowError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise RowError(
            f"{npm_name(name)}/{file} isn't in the form of version {(ICON_SETS | WORDS)[name].version} "
            f"({type(error).__name__}: {error}); install that version."
        ) from error
