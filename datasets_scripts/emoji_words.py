"""What people call an emoji: all vocabularies, the captions made of them, and the names that icons are found by."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .emoji_packages import Installed, understood

LOCALES = ("en-GB", "en-AU", "en-CA", "en-001")  # beside `en`, for their own short names
NAMED_BY_ICON = ("emojione-v1", "noto-v1", "openmoji")  # sets whose icon names say something new
SHORTCODE_SETS = ("emojibase", "iamcal", "joypixels", "github")
GITHUB = "github"  # gives names to find icons by, but no caption: `gemoji` has the same words
QUOTES = "'\u2018\u2019\u201c\u201d"
KEYCAPS = {"*": "asterisk", "#": "pound"}
TOKEN = re.compile("[a-z0-9+]+")
WORD = re.compile(r"[^:;/\\|<>]*[^\W\d_][^:;/\\|<>]*")  # has a letter, and is no smiley


class Words(NamedTuple):
    """All that the vocabularies say of an emoji."""

    emoji: str
    instance_id: str
    group: str
    short_name: str
    unicode_name: str
    keywords: list[str]
    emojilib: list[str]  # the first is a name
    gemoji_names: list[str]
    gemoji_tags: list[str]
    shortcodes: dict[str, list[str]]  # by set
    local_names: dict[str, str]  # by locale
    datasource_name: str
    tags: list[str]


class Caption(NamedTuple):
    """A text and the vocabulary that it is from."""

    source: str
    text: str


def instance_id_of(emoji: str) -> str:
    """Its code points in hex, without those that only choose a style.

    Example:
        >>> instance_id_of("❤️")
        '2764'
    """
    return "-".join(f"{ord(char):x}" for char in emoji if char != "\ufe0f")


def id_of_code_points(code_points: str) -> str:
    """The instance id for code points as packages write them, such as `0023-FE0F-20E3`."""
    return "-".join(f"{int(point, 16):x}" for point in code_points.split("-") if point.lower() != "fe0f")


def read_words(installed: Installed) -> list[Words]:
    """All emoji but skin tones, components and regional letters, in the order of Unicode.

    Raises:
        RowError: If a package is missing or has another form.
    """
    listed = installed.json("unicode-emoji-json", "data-by-emoji.json")
    english = read_annotations(installed, "en")
    local = {locale: read_annotations(installed, locale) for locale in LOCALES}
    emojilib = by_id(installed.json("emojilib", "dist/emoji-en-US.json"), "emojilib")
    gemoji = keyed(installed.js_list("gemoji", "index.js"), "gemoji", "emoji", instance_id_of)
    datasource = keyed(
        installed.json_list("emoji-datasource", "emoji.json"), "emoji-datasource", "unified", id_of_code_points
    )
    emojibase = keyed(
        installed.json_list("emojibase-data", "en/data.json"), "emojibase-data", "hexcode", id_of_code_points
    )
    shortcodes = {name: read_shortcodes(installed, name) for name in SHORTCODE_SETS}
    found = []
    for emoji, about in listed.items():
        key = instance_id_of(emoji)
        with understood("unicode-emoji-json", "data-by-emoji.json"):
            found.append(
                Words(
                    emoji=emoji,
                    instance_id=key,
                    group=slug(about["group"]).replace("-and-", "-"),
                    short_name=first(english.get(key, {}).get("tts")),
                    unicode_name=unicode_name(emoji, about["group"]),
                    keywords=english.get(key, {}).get("default", []),
                    emojilib=emojilib.get(key, []),
                    gemoji_names=gemoji.get(key, {}).get("names", []),
                    gemoji_tags=gemoji.get(key, {}).get("tags", []),
                    shortcodes={name: codes.get(key, []) for name, codes in shortcodes.items()},
                    local_names={locale: first(local[locale].get(key, {}).get("tts")) for locale in LOCALES},
                    datasource_name=(datasource.get(key, {}).get("name") or "").lower(),
                    tags=emojibase.get(key, {}).get("tags", []),
                )
            )
    return found


def read_annotations(installed: Installed, locale: str) -> dict[str, dict[str, list[str]]]:
    """The short name (`tts`) and the keywords (`default`) of CLDR by instance id, the derived ones of sequences too."""
    found: dict[str, dict[str, list[str]]] = {}
    files = [("cldr-annotations-full", "annotations", "annotations")]
    if locale != "en-GB":  # which has no derived ones
        files.append(("cldr-annotations-derived-full", "annotationsDerived", "annotationsDerived"))
    for package, folder, key in files:
        file = f"{folder}/{locale}/annotations.json"
        content = installed.json(package, file)
        with understood(package, file):
            for emoji, annotation in content[key]["annotations"].items():
                found.setdefault(instance_id_of(emoji), {}).update(annotation)
    return found


def read_shortcodes(installed: Installed, name: str) -> dict[str, list[str]]:
    """Shortcodes by instance id; a single one stands there without a list."""
    file = f"en/shortcodes/{name}.json"
    content = installed.json("emojibase-data", file)
    with understood("emojibase-data", file):
        return {
            id_of_code_points(points): [codes] if isinstance(codes, str) else list(codes)
            for points, codes in content.items()
        }


def by_id(content: Mapping[str, Any], package: str) -> dict[str, Any]:
    """What a package has under each emoji, under its instance id."""
    with understood(package, "its list of emoji"):
        return {instance_id_of(emoji): value for emoji, value in content.items()}


def keyed(entries: Iterable[Any], package: str, key: str, to_id: Any) -> dict[str, Any]:
    """The entries of a package's list by instance id."""
    with understood(package, "its list of emoji"):
        return {to_id(entry[key]): entry for entry in entries}


def first(texts: Sequence[str] | None) -> str:
    """The first text, or nothing."""
    return texts[0] if texts else ""


def unicode_name(emoji: str, group: str) -> str:
    """The name of a single character; for a flag it says less than the short name does."""
    bare = emoji.replace("\ufe0f", "")
    return unicodedata.name(bare, "").lower() if len(bare) == 1 and group != "Flags" else ""


def captions_of(words: Words, icon_names: Mapping[str, str], least: int, most: int) -> list[Caption]:
    """The texts that differ as sets of words, the short name first, at most `most`.

    One whose words all stand in the short name is left out, unless there are fewer than `least` without it.
    """
    name = tokens(words.short_name)
    seen: set[frozenset[str]] = set()
    kept: list[Caption] = []
    within_name: list[Caption] = []
    for caption in candidates(words, icon_names):
        meaning = tokens(caption.text)
        if not meaning or meaning in seen:
            continue
        seen.add(meaning)
        (within_name if kept and meaning <= name else kept).append(caption)
    kept = kept[:most]
    return kept + within_name[: max(0, least - len(kept))]


def candidates(words: Words, icon_names: Mapping[str, str]) -> Iterator[Caption]:
    """All texts about an emoji, from the vocabulary that describes best to the one that repeats most."""
    yield Caption("cldr:tts", words.short_name)
    yield Caption("unicode:name", words.unicode_name)
    yield Caption("cldr:keywords", ", ".join(words.keywords))
    yield Caption("emojilib:keywords", listing(spaced(word) for word in words.emojilib[1:] if WORD.fullmatch(word)))
    yield Caption("gemoji:names+tags", listing([*map(spaced, words.gemoji_names), *words.gemoji_tags]))
    codes = [code for name, codes in words.shortcodes.items() if name != GITHUB for code in codes]
    yield Caption("emojibase:shortcodes", listing(spaced(code) for code in codes if re.search("[a-z]{2}", code)))
    for locale, text in words.local_names.items():
        yield Caption(f"cldr:{locale}:tts", text)
    yield Caption("emoji-datasource:name", words.datasource_name)
    for icon_set in NAMED_BY_ICON:
        yield Caption(f"{icon_set}:icon-name", spaced(icon_names.get(icon_set, "")))
    yield Caption("emojibase:tags", ", ".join(words.tags))


def listing(texts: Iterable[str]) -> str:
    """The different texts in order, with commas."""
    return ", ".join(dict.fromkeys(texts))


def spaced(name: str) -> str:
    """A name with spaces between its words.

    Example:
        >>> spaced("rolling_on-the floor")
        'rolling on the floor'
    """
    return " ".join(re.sub("[_-]", " ", name).split())


def tokens(text: str) -> frozenset[str]:
    """The words of a text, whatever their order."""
    return frozenset(TOKEN.findall(text.lower()))


def names_of(words: Words) -> Iterator[str]:
    """What an icon of this emoji may be called, the best first."""
    kind, _, rest = words.short_name.partition(": ")
    if kind == "keycap":
        yield f"keycap {KEYCAPS.get(rest, rest)}"
    yield words.short_name
    yield words.unicode_name
    yield from words.gemoji_names
    for codes in words.shortcodes.values():
        yield from codes
    if kind == "flag":
        yield from (f"flag for {rest}", f"{rest} flag")
    yield from words.emojilib[:1]
    yield words.local_names["en-001"]


def slug(name: str) -> str:
    """A name as Iconify writes it.

    Example:
        >>> slug("Côte d'Ivoire & more")
        'cote-divoire-and-more'
    """
    plain = unicodedata.normalize("NFKD", name.lower()).replace("&", " and ")
    kept = "".join(char for char in plain if not unicodedata.combining(char) and char not in QUOTES)
    return "-".join(re.findall("[a-z0-9]+", kept))
