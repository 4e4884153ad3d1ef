"""How a data set is searched and scored, as data: one YAML file a protocol, with a hash that every result carries."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from training.multifold_retrieval.counting import TIE

PROTOCOLS = Path(__file__).resolve().parent / "protocols"
DEFAULT_PROTOCOL = "multifold/instance"

DIRECTIONS = {
    "text_to_instance": "text → instance",
    "instance_to_text": "instance → text",
    "image_to_class": "image → class",
    "instance_to_class": "instance → class",
}
# By setting, its values and what they mean: the one list for checks, reports and docs.
CHOICES = {
    "gallery_unit": {
        "instance": "a caption searches instances, and an instance searches captions",
        "observation": "a caption searches single views, and a view searches captions",
        "class": "a view or an instance searches the embedded names of all classes",
    },
    "pooling": {
        "none": "no pooling: each view stands for itself",
        "mean": "an instance is the unit-norm mean of the unit-norm embeddings of its views",
        "max": "an instance is the unit-norm vector of the largest value of each coordinate over its views",
        "attention": "an instance is the unit-norm mean of its views, weighted by the softmax of their cosine to the mean",
        "max_sim": "no pooling: an instance scores as its best-scoring view does",
    },
    "hit_rule": {
        "any": "one relevant item among the first k suffices (rr@k)",
        "share": "the share of the relevant items among the first k (recall@k)",
    },
    "identical_captions": {
        "keep": "counted as they are: the same text of another instance is not relevant",
        "drop_repeats": "of the equal texts of one instance only the first stays; that of another instance is not relevant",
        "drop_shared": "of the equal texts of one instance only the first stays, of those of several instances none",
    },
}
SIZES = ("num_instances", "num_images", "num_captions")


@dataclass(frozen=True)
class Protocol:
    """What is searched by what, and how it is scored; a file that `load_protocol` reads holds these keys.

    An instance without images is in no gallery, and its captions are queries without a relevant item; an instance
    without captions stays in the gallery. A cut-off beyond the gallery is left out of the report, which says so.

    Raises:
        ValueError: If a value is none of those allowed, or values contradict each other.
    """

    name: str
    description: str  # one sentence
    source: str  # where the definition stands, and what of it could not be verified
    directions: tuple[str, ...]  # keys of `DIRECTIONS`
    gallery_unit: str  # this and the next two: keys of `CHOICES`
    pooling: str
    hit_rule: str  # which of the two recalls tables show; results hold both
    hit_ks: tuple[int, ...]
    recall_ks: tuple[int, ...]
    precision_ks: tuple[int, ...]
    ndcg_ks: tuple[int, ...]
    identical_captions: str
    captions_per_instance: int | None  # the first so many of each instance, after duplicates are dropped; None: all
    captions_per_query: int | None  # consecutive captions of an instance that make a query together; None: all
    resamples: int  # of the bootstrap
    seed: int
    templates: tuple[str, ...] = ()  # class prompts, `{}` is the name
    expected_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by split, some of `SIZES`

    def __post_init__(self) -> None:
        """Refuse what no file may say; lists become tuples."""
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), list):
                object.__setattr__(self, each.name, tuple(value))
        for key in ("name", "description", "source"):
            _require(isinstance(getattr(self, key), str) and getattr(self, key), key, "a text", getattr(self, key))
        for key, choices in CHOICES.items():
            _require(getattr(self, key) in list(choices), key, f"one of {list(choices)}", getattr(self, key))
        for key in ("hit_ks", "recall_ks", "precision_ks", "ndcg_ks"):
            _require(_are_cutoffs(getattr(self, key)), key, "a list of ascending numbers from 1", getattr(self, key))
        for key in ("captions_per_instance", "captions_per_query"):
            value = getattr(self, key)
            _require(value is None or _is_count(value, 1), key, "'all' or a number from 1", value)
        _require(_is_count(self.resamples, 1), "resamples", "a number from 1", self.resamples)
        _require(_is_count(self.seed, 0), "seed", "a number from 0", self.seed)
        _require(_are_sizes(self.expected_sizes), "expected_sizes", f"{list(SIZES)} by split", self.expected_sizes)
        self._check_together()

    def _check_together(self) -> None:
        to_class = self.gallery_unit == "class"
        known = [name for name in DIRECTIONS if name.endswith("_to_class") == to_class]
        rule = f"a list of some of {known} for `gallery_unit: {self.gallery_unit}`"
        _require(_are_distinct(self.directions, known), "directions", rule, self.directions)
        pools = self.gallery_unit == "instance" or "instance_to_class" in self.directions
        rule = (
            "other than 'none' where an instance is searched or searches" if pools else "'none' where no instance is"
        )
        _require((self.pooling == "none") != pools, "pooling", rule, self.pooling)
        shown = "hit_ks" if self.hit_rule == "any" else "recall_ks"
        _require(getattr(self, shown), shown, f"given for `hit_rule: {self.hit_rule}`", getattr(self, shown))
        rule = (
            "a list of texts with one '{}' each" if to_class else f"left out for `gallery_unit: {self.gallery_unit}`"
        )
        _require(
            _are_templates(self.templates) if to_class else self.templates == (), "templates", rule, self.templates
        )

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of what decides the numbers: neither prose nor expected sizes, nor any order."""
        decisive = {key: sorted(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        for key in ("name", "description", "source", "expected_sizes"):
            del decisive[key]
        text = json.dumps(decisive | {"tie": TIE}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """The settings, ready for JSON, with the hash and with the rules in words."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        head = {key: settings.pop(key) for key in ("name", "description", "source")}
        return {**head, "hash": self.hash, **settings, "rules": self.rules()}

    def rules(self) -> dict[str, str]:
        """The settings in words, and what holds under every protocol."""
        return {key: choices[getattr(self, key)] for key, choices in CHOICES.items()} | {
            "queries": f"captions fused into a query: {self.captions_per_query or 'all of its instance'}; "
            f"captions of an instance: {self.captions_per_instance or 'all'}",
            "ties": f"expected value over all orders of scores within {TIE:g}",
            "scores": "cosine in float32, near ties in float64",
            "intervals": f"95 %, percentile bootstrap over instances, {self.resamples} resamples, seed {self.seed}",
        }


def load_protocol(name_or_path: str | Path) -> Protocol:
    """The protocol of that name, such as `multifold/instance`, or of a YAML file.

    Raises:
        ValueError: If there is none, or its file is not a valid protocol; the message names the file and the key.
    """
    path = PROTOCOLS / f"{name_or_path}.yaml" if str(name_or_path) in protocol_names() else Path(name_or_path)
    if not path.is_file():
        close = difflib.get_close_matches(str(name_or_path), protocol_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "or pass the path of a YAML file."
        raise ValueError(f"`protocol` must be one of {protocol_names()}, got {str(name_or_path)!r}; {hint}")
    try:
        return _from_settings(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Protocol file '{path}': {error}") from error


def protocol_names() -> list[str]:
    """The protocols that come with the code, in alphabetical order."""
    return sorted(path.relative_to(PROTOCOLS).with_suffix("").as_posix() for path in PROTOCOLS.rglob("*.yaml"))


def _from_settings(settings: Any) -> Protocol:
    """The protocol that a file's keys and values say."""
    if not isinstance(settings, dict):
        raise ValueError(f"it must hold keys and values, got {type(settings).__name__}.")
    known = [each.name for each in fields(Protocol)]
    needed = [each.name for each in fields(Protocol) if each.default is MISSING and each.default_factory is MISSING]
    if unknown := [key for key in settings if key not in known]:
        raise ValueError(f"unknown key `{unknown[0]}`; the keys are {known}.")
    if missing := [key for key in needed if key not in settings]:
        raise ValueError(f"key `{missing[0]}` is missing; the keys that it must have are {needed}.")
    return Protocol(**{key: _from_yaml(key, value) for key, value in settings.items()})


def _from_yaml(key: str, value: Any) -> Any:
    if key.startswith("captions_per_"):
        _require(value is not None, key, "'all' or a number from 1", value)
        return None if value == "all" else value
    return value


def _require(holds: object, key: str, rule: str, value: object) -> None:
    if not holds:
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"`{key}` must be {rule}, got {shown!r}.")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_cutoffs(values: object) -> bool:
    if not isinstance(values, tuple):
        return False
    return all(_is_count(value, 1) for value in values) and list(values) == sorted(set(values))


def _are_distinct(values: object, known: list[str]) -> bool:
    if not isinstance(values, tuple) or not all(value in known for value in values):
        return False
    return len(set(values)) == len(values) > 0


def _are_templates(texts: object) -> bool:
    if not isinstance(texts, tuple) or not all(isinstance(text, str) and text.count("{}") == 1 for text in texts):
        return False
    return len(set(texts)) == len(texts) > 0


def _are_sizes(sizes: object) -> bool:
    return isinstance(sizes, Mapping) and all(
        isinstance(split, Mapping)
        and split.keys() <= set(SIZES)
        and all(_is_count(size, 1) for size in split.values())
        for split in sizes.values()
    )
