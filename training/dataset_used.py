"""The data set that a run was made with: what its card says of it, and how anyone finds and checks the same data."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from training.arguments import DataArguments
from training.data import RawRows
from training.sources import StreamSample


class DatasetUsed(TypedDict):
    """The data set of a run, as JSON."""

    name: str
    fingerprint: NotRequired[str]  # of how the training split came about
    mixed_with: NotRequired[list[str]]  # names of further data sets that training drew from
    weights: NotRequired[list[float]]  # how often from each, where that was said
    streamed: NotRequired[bool]  # whether the training split was, which then has neither size nor fingerprint
    sizes: NotRequired[dict[str, int]]  # instances by split
    split: NotRequired[str]  # the one that the run's `metrics` are about
    content: NotRequired[str]  # `content_hash` of that split
    source: NotRequired[dict[str, Any]]  # keywords of `load_multifold`
    license: NotRequired[str]
    hub_id: NotRequired[str]


def describe_dataset(data: DataArguments, splits: Mapping[str, RawRows], split: str) -> DatasetUsed:
    """What a run says of its data set, whose scores are those of `split`."""
    described = plan_dataset(data) | {"sizes": sizes_of(splits), "split": split}
    if not isinstance(splits["train"], StreamSample):
        described["fingerprint"] = splits["train"].fingerprint
    if not isinstance(splits[split], StreamSample):
        described["content"] = content_hash(splits[split])
    facts = {"license": splits[split].rows.info.license, "hub_id": data.dataset if is_hub_id(data.dataset) else None}
    return described | {name: value for name, value in facts.items() if value}  # type: ignore[return-value]


def sizes_of(splits: Mapping[str, RawRows]) -> dict[str, int]:
    """Instances by split, where they can be counted."""
    return {name: len(rows) for name, rows in splits.items() if not isinstance(rows, StreamSample)}


def names_of(data: DataArguments) -> list[str]:
    """The data sets of a run, in words."""
    sources = [data.source, *data.more_sources]
    return [" ".join(filter(None, (source["dataset"], source["config"]))) for source in sources]


def plan_dataset(data: DataArguments) -> DatasetUsed:
    """What is known of a data set before anyone has loaded it."""
    name, *others = names_of(data)
    facts = {"mixed_with": others, "weights": data.dataset_weights, "streamed": data.streaming}
    planned: DatasetUsed = {
        "name": name,
        "source": {name: value for name, value in data.source.items() if value is not None and name != "num_proc"},
    }
    return planned | {name: value for name, value in facts.items() if value}  # type: ignore[return-value]


def is_hub_id(name: str) -> bool:
    """Whether the name of what was found means a repository of the Hub: `org/name`, and nothing on this machine."""
    return name.count("/") == 1 and name[0] not in "./~" and ":" not in name and not Path(name).exists()


@lru_cache(maxsize=8)  # of splits, which never change
def content_hash(rows: RawRows) -> str:
    """A hash of the ids, captions, categories and encoded images of all rows: the same wherever the same data lies."""
    digest = hashlib.sha256()
    for row in range(len(rows)):
        values = rows[row]
        images = values["images"] or []
        words = [values["instance_id"], values["captions"] or [], values.get("category"), len(images)]
        _add(digest, json.dumps(words, ensure_ascii=False).encode())
        for image in images:
            _add(digest, image["bytes"] or Path(image["path"]).read_bytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def _add(digest: Any, content: bytes) -> None:
    """Take in some bytes and their number, so that no two sequences of parts look alike."""
    digest.update(len(content).to_bytes(8, "big") + content)
