"""Which icon of each Iconify set shows which emoji."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .emoji_packages import ICON_SETS, Installed, npm_name, understood
from .emoji_words import Words, id_of_code_points, names_of, slug
from .svg import Drawing

SAME_NAMES = {"fluent-emoji": "fluent-emoji-flat"}  # a set that calls its icons as another does
WITHOUT_DASHES = ("fxemoji",)
MAX_ALIASES = 16  # one after the other


class Icon(NamedTuple):
    """An icon of a set."""

    icon_set: str
    name: str
    drawing: Drawing


def read_icons(installed: Installed, words: Sequence[Words]) -> dict[str, list[Icon]]:
    """The icons of each emoji, at most one from each set, in the order of `ICON_SETS`.

    Raises:
        RowError: If a package is missing or has another form.
    """
    found: dict[str, list[Icon]] = {emoji.instance_id: [] for emoji in words}
    for name, package in ICON_SETS.items():
        if package.share_alike and not installed.share_alike:
            continue
        icons = IconSet(name, installed.json(name, "icons.json"))
        for instance_id, icon in match_icons(icons, installed, words).items():
            found[instance_id].append(Icon(name, icon, icons.drawing(icon)))
    return found


class IconSet:
    """The icons of an Iconify package."""

    def __init__(self, name: str, content: dict[str, Any]) -> None:
        self.name, self.content = name, content
        with understood(name, "icons.json"):
            self.icons: dict[str, Any] = dict(content["icons"])
            self.aliases: dict[str, Any] = dict(content.get("aliases") or {})

    def resolve(self, name: str) -> str | None:
        """The icon that a name or an alias stands for."""
        with understood(self.name, "icons.json"):
            for _ in range(MAX_ALIASES):
                if name in self.icons or name not in self.aliases:
                    break
                name = self.aliases[name]["parent"]
            return name if name in self.icons else None

    def drawing(self, name: str) -> Drawing:
        """The drawing of an icon; sizes that it doesn't state are the set's, or else Iconify's 16."""
        with understood(self.name, "icons.json"):
            icon = self.icons[name]
            defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
            box = [float(icon.get(key, self.content.get(key, value))) for key, value in defaults.items()]
            return Drawing(f"{npm_name(self.name)}, icon '{name}'", str(icon["body"]), *box)


def match_icons(icons: IconSet, installed: Installed, words: Sequence[Words]) -> dict[str, str]:
    """The set's icon for each emoji: by code points where the package lists them, else by name."""
    source = SAME_NAMES.get(icons.name, icons.name)
    listed = installed.json(source, "chars.json")
    if not listed:
        return match_by_name(icons, words)
    with understood(source, "chars.json"):
        by_id = {id_of_code_points(points): str(name) for points, name in listed.items()}
    found = ((emoji.instance_id, icons.resolve(by_id.get(emoji.instance_id, ""))) for emoji in words)
    return {instance_id: name for instance_id, name in found if name}


def match_by_name(icons: IconSet, words: Sequence[Words]) -> dict[str, str]:
    """The set's icon for each emoji, found by a name that no other emoji has.

    An icon that two emoji would find, by two of its aliases, goes to the first.
    """
    spelled = {emoji.instance_id: list(spellings(emoji, icons.name in WITHOUT_DASHES)) for emoji in words}
    owners = Counter(name for found in spelled.values() for name in {name for name, _ in found})
    matched: dict[str, str] = {}
    taken: set[str] = set()
    for instance_id, found in spelled.items():
        own = (icons.resolve(spelling) for name, spelling in found if owners[name] == 1)
        icon = next((icon for icon in own if icon and icon not in taken), None)
        if icon:
            matched[instance_id] = icon
            taken.add(icon)
    return matched


def spellings(emoji: Words, without_dashes: bool) -> Iterator[tuple[str, str]]:
    """Each name of an emoji as a set writes it, and every way to write it there."""
    for name in map(slug, names_of(emoji)):
        if without_dashes and name:
            joined = name.replace("-", "")
            yield from ((joined, joined), (joined, name))
        elif name:
            yield name, name
