"""Captions under examination: what is wrong with each, which are equal or nearly so, and which say too little."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets.utils import tqdm
from numpy.typing import NDArray

from .findings import CAPTIONS, Corpus, Finding, Place, listed
from .images import rows_of, splits_of
from .near import (
    BITS_OF_BYTE,
    Indices,
    Occurrences,
    members_by_group,
    pairs_in_buckets,
    star_groups,
    unique_pairs,
)

PLACEHOLDERS = frozenset(
    [
        "n a",
        "na",
        "nan",
        "none",
        "null",
        "todo",
        "tbd",
        "unknown",
        "untitled",
        "no caption",
        "no description",
        "not available",
        "lorem ipsum",
    ]
)
FILE_NAME = re.compile(r"[\w-]+\.(bmp|gif|jpe?g|png|tiff?|webp)", re.IGNORECASE)
GARBLED = {
    "a broken character": re.compile("\ufffd"),
    "a control character": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "UTF-8 read as Latin-1": re.compile("Ã[\x80-\xbf¡-ÿ]|â€|Â[\xa0-\xbf]"),
    "markup": re.compile(r"</?[a-zA-Z][^<>]*>|&(#\d+|amp|lt|gt|quot|nbsp);"),
    "an address": re.compile(r"https?://|www\.", re.IGNORECASE),
}
FILLERS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "with",
        "and",
        "is",
        "are",
        "it",
        "its",
        "in",
        "on",
        "to",
        "this",
        "that",
        "these",
        "there",
        "has",
        "have",
        "by",
        "for",
        "as",
        "at",
        "be",
        "or",
        "from",
        "some",
    ]
)
GENERIC_SHARE, GENERIC_COUNT = 0.05, 10
SHINGLE, NUM_HASHES, HASHES_PER_BAND = 4, 32, 4
MIN_LIKENESS = 0.8
WINDOW = 64
TEXTS_AT_ONCE = 20_000


class Captions(NamedTuple):
    """All captions with a word in them."""

    places: list[Place]
    texts: Indices  # of each caption, which of `forms` it is
    forms: list[str]  # the different captions, as `normal_form` writes them
    instances: Indices


def examine_captions(corpus: Corpus, known: Iterable[Finding], instances: Indices) -> tuple[Captions, list[Finding]]:
    """The captions of all rows, and what is wrong with each by itself."""
    skipped = {place for finding in known for place in finding.drops}
    numbers: dict[str, int] = {}
    places, texts, findings = [], [], []
    for row, loose in enumerate(tqdm(corpus.rows, desc="captions")):
        for number, caption in enumerate(loose.captions):
            place = Place(row, CAPTIONS, number)
            if place in skipped or Place(row) in skipped:
                continue
            form = normal_form(caption)
            found = caption_finding(caption, form, place)
            findings += found
            if form and not any(finding.drops for finding in found):
                places.append(place)
                texts.append(numbers.setdefault(form, len(numbers)))
    owners = instances[np.array([place.row for place in places], dtype=np.int64)]
    return Captions(places, np.array(texts, dtype=np.int64), list(numbers), owners), findings


def normal_form(caption: str) -> str:
    """The words of a caption, small and without punctuation."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold()))


def caption_finding(caption: str, form: str, place: Place) -> list[Finding]:
    """What is wrong with one caption by itself."""
    if not form:
        return [Finding("wordless_caption", f"{caption!r:.80} has no word in it.", (place,), (place,))]
    if form in PLACEHOLDERS or FILE_NAME.fullmatch(caption.strip()):
        return [Finding("placeholder_caption", f"{caption!r:.80} says nothing of the instance.", (place,), (place,))]
    reasons = [reason for reason, pattern in GARBLED.items() if pattern.search(caption)]
    message = f"{caption!r:.80} holds {' and '.join(reasons)}."
    return [Finding("garbled_caption", message, (place,))] if reasons else []


def compare_captions(corpus: Corpus, captions: Captions) -> tuple[Occurrences, list[Finding]]:
    """The groups of equal and nearly equal captions, and a finding for each within a row or across instances."""
    generic, findings = find_generic(captions, corpus.num_instances)
    for members in members_by_group(captions.texts):
        places, text = [captions.places[member] for member in members], int(captions.texts[members[0]])
        is_across = len(set(captions.instances[members].tolist())) > 1 and text not in generic
        findings += equal_findings(corpus, places, captions.forms[text], is_across)
    groups = star_groups(len(captions.forms), near_pairs(captions.forms))[captions.texts]
    for members in members_by_group(groups):
        texts = set(captions.texts[members].tolist())
        if len(texts - generic) > 1 and len(set(captions.instances[members].tolist())) > 1:
            places = [captions.places[member] for member in members if captions.texts[member] not in generic]
            findings += near_findings(corpus, places, [captions.forms[text] for text in sorted(texts - generic)])
    return Occurrences(groups, captions.instances), findings


def equal_findings(corpus: Corpus, places: Sequence[Place], form: str, is_across: bool) -> Iterator[Finding]:
    """The findings of one text that comes several times."""
    for same_row in rows_of(places).values():
        if len(same_row) > 1:
            instance_id = corpus.rows[same_row[0].row].instance_id
            message = f"'{instance_id}' has {form!r:.80} {len(same_row)} times."
            yield Finding("repeated_caption", message, same_row, same_row[1:])
    if is_across:
        splits = splits_of(corpus, places)
        kind = "leaked_caption" if len(splits) > 1 else "shared_caption"
        ids = listed(dict.fromkeys(corpus.rows[place.row].instance_id for place in places))
        yield Finding(kind, f"{form!r:.80} in {' and '.join(splits)}: instances {ids}.", places)


def near_findings(corpus: Corpus, places: Sequence[Place], forms: Sequence[str]) -> list[Finding]:
    """The finding of a group of texts that are nearly equal, if it spans instances."""
    ids = dict.fromkeys(corpus.rows[place.row].instance_id for place in places)
    if len(ids) < 2:
        return []
    splits = splits_of(corpus, places)
    kind = "near_leaked_caption" if len(splits) > 1 else "near_shared_caption"
    message = f"{listed(forms, 2)} in {' and '.join(splits)}: instances {listed(ids)}."
    return [Finding(kind, message, places)]


def find_generic(captions: Captions, num_instances: int) -> tuple[set[int], list[Finding]]:
    """The texts that fit many instances, and a finding for each.

    A text fits an instance whose captions together use all its words but articles and the like.
    """
    least = max(GENERIC_COUNT, int(GENERIC_SHARE * num_instances))
    words = [frozenset(form.split()) for form in captions.forms]
    bags: dict[int, set[str]] = defaultdict(set)
    for text, instance in zip(captions.texts.tolist(), captions.instances.tolist(), strict=True):
        bags[instance] |= words[text]
    masks = word_masks(list(bags.values()), least)
    fits = [how_many_fit(wanted, masks, len(bags)) for wanted in words]
    generic = {text for text, count in enumerate(fits) if count >= least}
    places: dict[int, list[Place]] = defaultdict(list)
    for place, text in zip(captions.places, captions.texts.tolist(), strict=True):
        if text in generic:
            places[text].append(place)
    return generic, [
        Finding(
            "generic_caption", f"{captions.forms[text]!r:.80} fits {fits[text]:,} of {len(bags):,} instances.", found
        )
        for text, found in sorted(places.items(), key=lambda item: -fits[item[0]])
    ]


def word_masks(bags: Sequence[set[str]], least: int) -> dict[str, NDArray[np.uint8]]:
    """For each word that many bags hold, which do, a bit a bag."""
    counts = Counter(word for bag in bags for word in bag)
    frequent = {word: number for number, (word, count) in enumerate(counts.items()) if count >= least}
    holders: dict[str, list[int]] = {word: [] for word in frequent}
    for number, bag in enumerate(bags):
        for word in bag & frequent.keys():
            holders[word].append(number)
    masks = {}
    for word, numbers in holders.items():
        is_held = np.zeros(len(bags), dtype=bool)
        is_held[numbers] = True
        masks[word] = np.packbits(is_held)
    return masks


def how_many_fit(words: frozenset[str], masks: Mapping[str, NDArray[np.uint8]], num_bags: int) -> int:
    """How many bags hold all the words that aren't fillers, 0 if any is in few bags.

    A filler in few bags counts as a word: `at` and `is` may be countries.
    """
    if not words <= masks.keys():
        return 0
    held = [masks[word] for word in words - FILLERS]
    return int(BITS_OF_BYTE[np.bitwise_and.reduce(held)].sum()) if held else num_bags


def near_pairs(forms: Sequence[str]) -> NDArray[np.int64]:
    """Pairs of texts that share their words, or at least 0.8 of their runs of four letters."""
    encoded = [f" {form} ".encode().ljust(SHINGLE) for form in forms]
    signatures = minhash_signatures(encoded)
    pairs = []
    for first in range(0, NUM_HASHES, HASHES_PER_BAND):
        keys = np.zeros(len(forms), dtype=np.uint64)
        for column in range(first, first + HASHES_PER_BAND):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column]
        for some, others in pairs_in_buckets(keys, signatures[:, first - 1].astype(np.uint64), WINDOW):
            is_likely = (signatures[some] == signatures[others]).mean(axis=1) >= MIN_LIKENESS - 0.2
            pairs.append((some[is_likely], others[is_likely]))
    found = unique_pairs(pairs)
    is_near = [is_close(encoded[some], encoded[other]) for some, other in found.tolist()]
    return unique_pairs([*same_words(forms), tuple(found[np.array(is_near, dtype=bool)].T)])


def minhash_signatures(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """The smallest of each of 32 hashes over a text's runs of four bytes, `(num_texts, 32)`.

    Two texts agree in each with a probability that is the Jaccard index of their runs.
    """
    multipliers = np.random.default_rng(0).integers(0, 2**31, NUM_HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(
        1
    )
    signatures = np.empty((len(texts), NUM_HASHES), dtype=np.uint32)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        runs, firsts = runs_of_bytes(texts[start : start + TEXTS_AT_ONCE])
        runs ^= runs >> np.uint32(15)
        for column, multiplier in enumerate(multipliers):
            hashed = runs * multiplier
            hashed ^= hashed >> np.uint32(16)
            hashed *= np.uint32(0x7FEB352D)
            signatures[start : start + TEXTS_AT_ONCE, column] = np.minimum.reduceat(hashed, firsts)
    return signatures


def runs_of_bytes(texts: Sequence[bytes]) -> tuple[NDArray[np.uint32], Indices]:
    """Every run of four bytes within a text as a number, text after text, and where each text's begin."""
    joined = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.uint32)
    num_runs = len(joined) - SHINGLE + 1
    runs = sum(joined[place : place + num_runs] << np.uint32(8 * place) for place in range(SHINGLE))
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    is_inside = np.ones(len(joined), dtype=bool)
    for back in range(1, SHINGLE):
        is_inside[ends - back] = False
    counts = lengths - SHINGLE + 1
    return np.asarray(runs)[is_inside[:num_runs]], np.cumsum(counts) - counts


def is_close(some: bytes, other: bytes) -> bool:
    """Whether the Jaccard index of two texts' runs of four bytes is at least 0.8."""
    runs, others = (
        {text[place : place + SHINGLE] for place in range(len(text) - SHINGLE + 1)} for text in (some, other)
    )
    return len(runs & others) >= MIN_LIKENESS * len(runs | others)


def same_words(forms: Sequence[str]) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of texts with the same words in another order."""
    first: dict[tuple[str, ...], int] = {}
    pairs = []
    for text, form in enumerate(forms):
        leader = first.setdefault(tuple(sorted(form.split())), text)
        if leader != text:
            pairs.append((leader, text))
    if pairs:
        some, others = np.array(pairs, dtype=np.int64).T
        yield some, others
