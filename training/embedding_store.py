"""Embeddings of a split on disk: shards that are whole or not there, and a manifest that says what they are of.

A folder holds `manifest.json` and, for each shard, `embeddings-….safetensors` with `image_embeds`, `image_group_ids`,
`text_embeds` and `text_group_ids`, and `instances-….parquet` with a row per instance: `instance_id`, `group_id`,
`category`, `num_images`, `captions`. So FAISS takes `safetensors.numpy.load_file(path)["image_embeds"]` as it is.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from training.durable import UNFINISHED, sha256_of, write_durably
from training.embedding_shards import DTYPES, TENSORS, read_shard, shard_files
from training.searches import Embeddings

Manifest: TypeAlias = dict[str, Any]  # JSON
Receipt: TypeAlias = dict[str, Any]  # JSON: what one shard holds, and the size and hash of its files

FORMAT = "mxmclr-embeddings-1"
MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "datasets", "safetensors", "mxmclr")


@dataclass(frozen=True)
class Origin:
    """What embeddings are of, and how they are laid out; two origins are equal if their shards may mix."""

    revision: str  # of the model, see `training.checkpoints.revision_of`
    fingerprint: str  # of the rows
    split: str
    num_instances: int
    instances_per_shard: int = 1024
    dtype: str = "float32"
    checkpoint: str = field(default="", compare=False)  # its name, which may change while the weights don't

    def __post_init__(self) -> None:
        """Check what comes from a command line."""
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {sorted(DTYPES)}, got {self.dtype!r}.")
        if self.instances_per_shard < 1:
            raise ValueError(f"`instances_per_shard` must be at least 1, got {self.instances_per_shard}.")
        if self.num_instances < 1:
            raise ValueError(f"The split {self.split!r} has no rows to embed; name another.")

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that count when two are compared."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.compare}

    @property
    def digest(self) -> str:
        """A short name: 16 hex digits, equal for equal origins."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]


class EmbeddingStore:
    """A folder that is filled shard by shard, by any number of processes, any of which may die at any moment.

    A shard is a fixed range of rows. Its files are written beside their place, synced and renamed, and a receipt with
    their hashes follows; a shard without files that fit its receipt counts as not there. The main process calls `open`
    before, and `finish` after, all ranks have written what is `missing`.

    Args:
        folder: Where it is or will be.
        origin: What the embeddings are of.
    """

    def __init__(self, folder: Path | str, origin: Origin) -> None:
        self.folder, self.origin = Path(folder), origin
        self.num_shards = math.ceil(origin.num_instances / origin.instances_per_shard)

    def open(self) -> None:
        """Begin the folder, or check that it holds embeddings of this origin.

        Raises:
            ValueError: If it holds those of another one, or something else.
        """
        if is_embedding_folder(self.folder):
            check_origin(self.folder, read_manifest(self.folder), self.origin)
        else:
            check_is_free(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest({"complete": False})

    def instances(self, number: int) -> range:
        """The rows of a shard."""
        start = number * self.origin.instances_per_shard
        return range(start, min(start + self.origin.instances_per_shard, self.origin.num_instances))

    def missing(self, rank: int = 0, num_ranks: int = 1) -> list[int]:
        """This rank's shards that are not there whole; reads those that seem to be, to be sure."""
        receipts = self._receipts()
        return [n for n in range(rank, self.num_shards, num_ranks) if not is_whole(self.folder, receipts[n])]

    def write(self, number: int, embeddings: Embeddings) -> None:
        """Store the embeddings of the rows `instances(number)`."""
        place = f"{number:05d}-of-{self.num_shards:05d}"
        names = f"embeddings-{place}.safetensors", f"instances-{place}.parquet"
        files = {}
        for name, content in zip(names, shard_files(embeddings, self.origin.dtype), strict=True):
            write_durably(self.folder / name, content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        receipt = {
            "num_instances": len(embeddings.instance_ids),
            "num_images": len(embeddings.image_embeds),
            "num_captions": len(embeddings.captions),
            "dim": embeddings.image_embeds.shape[1],
            "files": files,
        }
        write_durably(self._receipt_path(number), as_json(receipt))

    def finish(self) -> None:
        """Gather the receipts in the manifest; where no shard was written since the last time, nothing changes.

        Raises:
            ValueError: If a shard has none.
        """
        if read_manifest(self.folder)["complete"] and not any(self.folder.glob("receipt-*")):
            return
        receipts = [each for each in self._receipts() if each is not None]
        if len(receipts) < self.num_shards:
            raise ValueError(
                f"`{self.folder}` lacks {self.num_shards - len(receipts)} shards; `write` those `missing`."
            )
        counts = {name: sum(each[name] for each in receipts) for name in ("num_images", "num_captions")}
        self._write_manifest({"complete": True, **counts, "dim": receipts[0]["dim"], "shards": receipts})
        for number in range(self.num_shards):
            self._receipt_path(number).unlink(missing_ok=True)

    def _write_manifest(self, more: Manifest) -> None:
        versions = {name: version(name) for name in PACKAGES}
        manifest = {"format": FORMAT, **asdict(self.origin), "versions": versions, **more}
        write_durably(self.folder / MANIFEST, as_json(manifest))

    def _receipt_path(self, number: int) -> Path:
        return self.folder / f"receipt-{number:05d}-of-{self.num_shards:05d}.json"

    def _receipts(self) -> list[Receipt | None]:
        """Of each shard, that of a writing since the last `finish`, else the manifest's."""
        finished = read_manifest(self.folder).get("shards", [None] * self.num_shards)
        return [read_receipt(self._receipt_path(number)) or finished[number] for number in range(self.num_shards)]


def load_embeddings(folder: Path | str) -> Embeddings:
    """All that a finished folder holds; a single shard is mapped from disk, several are copied into one.

    Raises:
        ValueError: If the folder is not whole.
    """
    shards = list(iterate_shards(folder))
    if len(shards) == 1:
        return shards[0]
    tensors = {name: torch.cat([getattr(shard, name) for shard in shards]) for name in TENSORS}
    return Embeddings(
        **tensors,
        captions=[caption for shard in shards for caption in shard.captions],
        instance_ids={key: name for shard in shards for key, name in shard.instance_ids.items()},
        categories={key: name for shard in shards for key, name in shard.categories.items()},
    )


def iterate_shards(folder: Path | str) -> Iterator[Embeddings]:
    """The shards of a finished folder in order, their tensors mapped from disk: for galleries beyond memory.

    Raises:
        ValueError: If the folder is not whole.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_is_whole(folder, manifest)
    for receipt in manifest["shards"]:
        tensors, rows = (folder / name for name in receipt["files"])
        yield read_shard(tensors, rows)


def is_embedding_folder(folder: Path | str) -> bool:
    """Whether embeddings were begun there."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path | str) -> Manifest:
    """What the embeddings of a folder are of.

    Raises:
        ValueError: If there is no manifest of ours.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"`{folder}` holds no embeddings: there is no {MANIFEST}; make them with embed.py.") from None
    except ValueError as error:
        raise ValueError(f"`{path}` can't be read: {error}; delete the folder and make it again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ValueError(f"`{path}` must be of the format {FORMAT!r}, got {found!r}; make the folder again.")
    return manifest


def check_origin(folder: Path, manifest: Manifest, origin: Origin) -> None:
    """Raise ValueError unless a folder's embeddings are of this origin."""
    differing = {
        name: f"{name} {manifest.get(name)!r} there and {value!r} now"
        for name, value in origin.identity.items()
        if manifest.get(name) != value
    }
    if differing:
        raise ValueError(
            f"`{folder}` holds embeddings of another origin: {'; '.join(differing.values())}. Name another folder, or "
            "delete this one to begin anew."
        )


def check_is_free(folder: Path) -> None:
    """Raise ValueError if the path holds anything but what a dying process left of its manifest."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{folder}` must be a folder, got a file; name another place.")
    others = [path.name for path in folder.glob("*") if not path.name.endswith(UNFINISHED)]
    if others:
        raise ValueError(
            f"`{folder}` must be empty or hold embeddings, got {sorted(others)[0]!r} without {MANIFEST}; name another folder."
        )


def check_is_whole(folder: Path, manifest: Manifest) -> None:
    """Raise ValueError unless all shards were written, and their files have the sizes that they had then."""
    if not manifest["complete"]:
        raise ValueError(f"`{folder}` is not finished; repeat the command that began it, it goes on where it stopped.")
    for receipt in manifest["shards"]:
        for name, expected in receipt["files"].items():
            if not fits(folder / name, expected):
                raise ValueError(
                    f"`{folder / name}` is missing or was cut, {expected['bytes']} bytes were written; repeat the "
                    "command that made the folder, it mends what is broken."
                )


def read_receipt(path: Path) -> Receipt | None:
    """A receipt, if there is one that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def is_whole(folder: Path, receipt: Receipt | None) -> bool:
    """Whether the files of a receipt are there with the sizes and hashes that it says."""
    return receipt is not None and all(
        fits(folder / name, expected) and sha256_of(folder / name) == expected["sha256"]
        for name, expected in receipt["files"].items()
    )


def fits(path: Path, expected: Receipt) -> bool:
    """Whether a file is there and has its size."""
    return path.is_file() and path.stat().st_size == expected["bytes"]


def as_json(value: Manifest) -> bytes:
    """JSON for people and programs."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
