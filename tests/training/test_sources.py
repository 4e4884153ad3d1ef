import io
import json
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from datasets import Features
from torch.utils.data import DataLoader

from datasets_scripts.loading import load_multifold
from datasets_scripts.schema import FEATURES
from tests.references.corpus import write_corpus
from tests.references.hub_server import hub_server
from tests.references.tiny import picture
from training import sources
from training.arguments import DataArguments
from training.data import RawRows
from training.dataset_used import describe_dataset
from training.sources import StreamSample, load_sources
from training.streams import StreamedRows

pytestmark = pytest.mark.usefixtures("logging_state")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, datasets_cache):
    """Two data sets whose instances have the same ids, the second one Parquet without a category."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = load_multifold(str(write_corpus(folder / "second", splits=(("train", 5),))))["train"]
    (folder / "parquet").mkdir()
    kept = Features({name: FEATURES[name] for name in ("instance_id", "images", "captions")})
    rows.select_columns(list(kept)).cast(kept).to_parquet(folder / "parquet" / "train.parquet")
    return write_corpus(folder / "first"), folder / "parquet"


def load(corpora, **options):
    return load_sources(DataArguments(str(corpora[0]), more_datasets=[str(corpora[1])], **options))


def test_one_data_set_is_as_it_was_loaded(corpora):
    found = load_sources(DataArguments(str(corpora[0])))
    assert (found.sizes, found.streams) == ([12], [])
    assert found.splits["train"].fingerprint == RawRows(load_multifold(str(corpora[0]))["train"]).fingerprint
    assert len(list(found.captions())) == 18


def test_a_mixture_holds_all_training_rows_and_is_evaluated_on_the_first_data_set(corpora):
    found = load(corpora)
    rows = found.splits["train"]
    assert found.sizes == [12, 5]
    assert len(found.splits["test"]) == 4
    assert rows.column("instance_id")[10:14] == ["square-10", "square-11", "1:square-0", "1:square-1"]
    assert rows[12]["captions"] == rows[0]["captions"]
    assert rows[12]["images"][0]["bytes"] == rows[0]["images"][0]["bytes"]
    assert [rows[row]["category"] for row in (0, 12)] == ["small", None]
    assert rows.fingerprint == load(corpora).splits["train"].fingerprint != found.splits["test"].fingerprint


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_can_be_shared_where_they_mean_the_same(corpora, streaming):
    found = load(corpora, shared_instance_ids=True, streaming=streaming, dataset_weights=[1, 1])
    if streaming:
        ids = [row["instance_id"] for stream in found.streams for row in stream.rows()]
    else:
        ids = found.splits["train"].column("instance_id")
    assert sorted(ids[12:]) == [f"square-{n}" for n in range(5)]
    assert len(set(ids)) == 12


def test_streams_have_the_rows_of_what_is_stored(corpora):
    stored, streamed = load(corpora), load(corpora, streaming=True, dataset_weights=[1, 1])
    rows = [row for stream in streamed.streams for row in stream.rows()]
    expected = [stored.splits["train"][row] for row in range(17)]
    assert [row["instance_id"] for row in rows] == [row["instance_id"] for row in expected]
    assert [row["captions"] for row in rows] == [row["captions"] for row in expected]
    assert [row["images"][0]["bytes"] for row in rows] == [row["images"][0]["bytes"] for row in expected]
    assert sorted(streamed.captions()) == sorted(stored.captions())
    assert isinstance(streamed.splits["train"], StreamSample)
    assert streamed.splits["test"].column("instance_id") == stored.splits["test"].column("instance_id")


def write_tars(folder):
    """Four tar files of three instances each, which `datasets` reads as well as our own builder."""
    folder.mkdir()
    for number in range(4):
        with tarfile.open(folder / f"train-{number}.tar", "w") as tar:
            for key in (f"{number}{place}" for place in "abc"):
                for name, content in ((f"{key}.png", encoded()), (f"{key}.txt", b"a red chair")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def encoded():
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "columns",
    [{}, {"instance_column": "__key__", "image_columns": ["png"], "caption_columns": ["txt"]}],
    ids=["ours", "grouped"],
)
def test_tars_are_dealt_to_two_ranks_with_two_workers_each(tmp_path, columns):
    data = DataArguments(str(write_tars(tmp_path / "tars")), streaming=True, **columns)
    (stream,) = load_sources(data).streams
    found = []
    for rank in range(2):
        rows = StreamedRows([stream], [1.0], 2, window=2, seed=0, rank=rank, num_ranks=2, num_workers=2)
        loader = DataLoader(rows, batch_size=None, num_workers=2, collate_fn=lambda element: element[0])
        found += [row for batch in islice(loader, 6) for row in batch]
    assert sorted(row["instance_id"] for row in found) == [f"{n}{place}" for n in range(4) for place in "abc"]
    assert all(row["captions"] == ["a red chair"] and row["images"][0]["bytes"] == encoded() for row in found)


HUB = """
import json, sys
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from training.arguments import DataArguments
from training.sources import load_sources
from training.streams import StreamedRows

api = HfApi()
api.create_repo("org/squares", repo_type="dataset")
api.upload_folder(repo_id="org/squares", repo_type="dataset", folder_path=sys.argv[1])

def read(amount, states=None, first=0):
    rows = StreamedRows(load_sources(DataArguments("org/squares", streaming=True)).streams, [1.0], 2, 3, 0, 0, 1, 2)
    rows.first, rows.states = first, states or rows.states
    found = []
    for batch, state in DataLoader(rows, batch_size=None, num_workers=2, collate_fn=tuple):
        rows.states[(first + len(found)) % 2] = state
        found.append([row["instance_id"] for row in batch])
        if len(found) == amount:
            return found, rows.states

whole, _ = read(9)
_, states = read(3)
print(json.dumps([whole, read(6, states, 3)[0]]))
"""


@pytest.mark.slow
def test_a_stream_of_the_hub_is_dealt_to_workers_and_goes_on(corpora, tmp_path):
    rows = load_sources(DataArguments(str(corpora[0]))).splits["train"].rows.with_format(None)
    for part in range(4):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.shard(4, part).to_parquet(tmp_path / "data" / f"train-0000{part}-of-00004.parquet")
    with hub_server() as server:
        run = subprocess.run(
            [sys.executable, "-c", HUB, str(tmp_path)],
            env=server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    whole, rest = json.loads(run.stdout.splitlines()[-1])
    assert sorted(each for batch in whole[:6] for each in batch) == sorted(f"square-{n}" for n in range(12))
    assert rest == whole[3:]


def test_a_look_at_a_stream_is_short_and_its_other_splits_are_not_too_large(corpora, monkeypatch):
    monkeypatch.setattr(sources, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(sources, "SAMPLE_CAPTIONS", 2)
    found = load_sources(DataArguments(str(corpora[0]), streaming=True))
    assert len(found.splits["train"]) == 3
    assert len(list(found.captions())) == 3
    monkeypatch.setattr(sources, "MAX_SPLIT_BYTES", 100)
    with pytest.raises(ValueError, match="images of the split `validation` must not exceed 100 bytes"):
        load_sources(DataArguments(str(corpora[0]), streaming=True))


def test_a_run_says_what_it_drew_from_and_counts_no_stream(corpora):
    mixed = {"more_datasets": [str(corpora[1])], "dataset_weights": [2.0, 1.0]}
    stored = DataArguments(str(corpora[0]), **mixed)
    facts = describe_dataset(stored, load_sources(stored).splits, "test")
    assert facts["mixed_with"] == [str(corpora[1])]
    assert facts["weights"] == [2.0, 1.0]
    assert facts["sizes"] == {"train": 17, "validation": 4, "test": 4}
    streamed = DataArguments(str(corpora[0]), streaming=True, **mixed)
    splits = load_sources(streamed).splits
    other = describe_dataset(streamed, splits, "test")
    assert other["sizes"] == {"validation": 4, "test": 4}
    assert other["streamed"]
    assert "fingerprint" not in other
    assert {name: other[name] for name in ("content", "source")} == {
        name: facts[name] for name in ("content", "source")
    }
    assert "content" not in describe_dataset(streamed, splits, "train")
    assert type(splits["test"]) is RawRows
