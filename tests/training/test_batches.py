import json
import logging
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

from datasets_scripts.loading import load_multifold
from modeling_mxmclr.folds_mxmclr import hash_instance_id
from tests.references.corpus import write_corpus
from tests.references.gloo_pool import GlooPool
from tests.references.stream_jobs import dealt_batches
from tests.references.tiny import tiny_processor
from training.arguments import DataArguments
from training.batches import build_batches
from training.sources import load_sources

PROCESSOR = tiny_processor()
pytestmark = pytest.mark.usefixtures("logging_state")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, datasets_cache):
    """A corpus as Parquet, a row group for every three instances."""
    folder = tmp_path_factory.mktemp("batches")
    rows = load_multifold(str(write_corpus(folder / "corpus", splits=(("train", 24),))))
    (folder / "parquet").mkdir()
    rows["train"].to_parquet(folder / "parquet" / "train.parquet", batch_size=3)
    return folder / "parquet"


@lru_cache
def loaded(data):
    return load_sources(DataArguments(**json.loads(data)))


def batches(folder, rank=0, num_ranks=1, num_batches=8, **options):
    data = DataArguments(str(folder), **{"instances_per_step": 4, "num_workers": 0, **options})
    optimization = SimpleNamespace(max_steps=num_batches, gradient_accumulation_steps=1, seed=0)
    session = SimpleNamespace(
        arguments=SimpleNamespace(data=data, optimization=optimization),
        accelerator=SimpleNamespace(process_index=rank, num_processes=num_ranks, device=torch.device("cpu")),
        sources=loaded(json.dumps(vars(data))),
        processor=PROCESSOR,
        frozen_text=None,
    )
    session.splits = session.sources.splits
    return build_batches(session, 1, 1)


def same(first, second):
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(first, second, strict=True)
    )


MIXTURES = {
    "stored": {},
    "mixed": {"more_datasets": ["{folder}/../corpus"], "dataset_weights": [3, 1]},
    "streamed": {"streaming": True, "shuffle_buffer": 5},
    "streams": {"streaming": True, "shuffle_buffer": 5, "more_datasets": ["{folder}/../corpus"]}
    | {"dataset_weights": [1, 1]},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_batches_go_on_exactly_after_any_of_them(folder, name):
    options = MIXTURES[name] | {
        "more_datasets": [each.format(folder=folder) for each in MIXTURES[name].get("more_datasets", [])]
    }
    whole, states, found = batches(folder, **options), [], []
    states.append(json.dumps(whole.state_dict()))
    for batch in whole:
        found.append(batch)
        states.append(json.dumps(whole.state_dict()))
    assert len(found) == 8
    for start, state in enumerate(states):
        rest = batches(folder, **options)
        rest.load_state_dict(json.loads(state))
        assert same(list(rest), found[start:])


def test_what_workers_have_read_ahead_is_read_again(folder):
    options = {"streaming": True, "shuffle_buffer": 5, "num_workers": 2, "instances_per_step": 3}
    found = list(batches(folder, **options))
    for start in (1, 4):
        stopped, rest = batches(folder, **options), batches(folder, **options)
        for _, _ in zip(range(start), stopped, strict=False):
            pass
        rest.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert same(list(rest), found[start:])


def test_other_readers_begin_the_next_epoch_and_say_so(folder, caplog):
    former = batches(folder, num_batches=20, streaming=True)
    for _, _ in zip(range(8), former, strict=False):
        pass
    later = batches(folder, num_batches=20, num_ranks=2, streaming=True)
    with caplog.at_level(logging.WARNING):
        later.load_state_dict(former.state_dict())
    assert "goes on with epoch 2 from the start" in caplog.text
    assert {lane["epoch"] for lanes in later.state_dict()["lanes"] for lane in lanes} == {2}
    assert len(list(later)) == 12


def test_too_many_readers_for_a_stream_are_told_what_to_do(folder, caplog):
    with caplog.at_level(logging.WARNING):
        batches(folder, streaming=True, num_ranks=5, num_workers=2)
        batches(folder, streaming=True, num_ranks=9)
    assert "too few files for 2 workers on each of 5 ranks: 1 of them read" in caplog.text
    assert "fewer files than there are ranks (9)" in caplog.text


def test_no_dispatcher_cuts_batches_of_several_ranks(folder):
    """Accelerate's own loader of streams cuts every tensor by rows, and so images from the texts of their instance."""
    pool = GlooPool(2)
    try:
        ranks = pool.run(dealt_batches, str(folder))
    finally:
        pool.close()
    everything = []
    for dealt in zip(*ranks, strict=True):
        for images, texts, instances in dealt:
            assert set(images) == set(texts) == set(map(hash_instance_id, instances))
            assert len(instances) == 2
            everything += instances
    assert sorted(everything) == sorted(f"square-{n}" for n in range(24))
