import json
from itertools import islice

import pytest
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader

from datasets_scripts.schema import FEATURES
from training.streams import Lane, Place, Stream, StreamedRows, start_of, usable_workers


def stream(num_rows=23, num_files=6, name="", prefix=""):
    rows = [
        {"instance_id": f"{name}{n}", "images": [{"bytes": b"x", "path": None}], "captions": ["a"], "category": None}
        for n in range(num_rows)
    ]
    return Stream(Dataset.from_list(rows, features=FEATURES).to_iterable_dataset(num_shards=num_files), prefix)


def lane(source, number=0, num_lanes=1, window=4, seed=0, state=None):
    return Lane(source, Place(number, num_lanes), window, seed, state or start_of(epoch=0))


def ids(rows):
    return [row["instance_id"] for row in rows]


def epoch_of(reader, batch_size=1):
    """The ids that a lane gives in its present epoch, from its beginning."""
    epoch, found = reader.epoch, []
    while (rows := reader.take(batch_size))[0]["epoch"] == epoch:
        found += ids(rows)
    return found


@pytest.mark.parametrize(("num_lanes", "num_files"), [(1, 6), (2, 6), (4, 6), (6, 6), (3, 1), (4, 2)])
def test_every_instance_of_an_epoch_belongs_to_one_lane(num_lanes, num_files):
    source = stream(num_files=num_files)
    for epoch in (0, 1):
        parts = [epoch_of(lane(source, n, num_lanes, state=start_of(epoch))) for n in range(num_lanes)]
        assert all(parts)
        assert sorted(each for part in parts for each in part) == sorted(map(str, range(23)))


def test_epochs_are_new_orders_and_the_last_few_are_left_out():
    reader = lane(stream())
    epochs = [[], []]
    for _ in range(8):
        rows = reader.take(5)
        assert len({row["epoch"] for row in rows}) == 1
        epochs[rows[0]["epoch"]] += ids(rows)
    assert [len(epoch) for epoch in epochs] == [20, 20]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epoch_of(lane(stream(), seed=1)) != epoch_of(lane(stream(), seed=0))


@pytest.mark.parametrize("window", [1, 4, 100])
def test_a_lane_goes_on_exactly_from_any_row_on(window):
    source = stream(num_rows=13, num_files=3)
    whole, states = lane(source, window=window), []
    rows = []
    for _ in range(30):  # more than two epochs
        states.append(json.loads(json.dumps(whole.state_dict())))
        rows += [(row["instance_id"], row["epoch"]) for row in whole.take(1)]
    for start, state in enumerate(states):
        rest = lane(source, window=window, state=state)
        found = [(row["instance_id"], row["epoch"]) for _ in range(30 - start) for row in rest.take(1)]
        assert found == rows[start:]


def test_a_window_shuffles_and_holds_back_no_more_than_its_size():
    order = [int(each) for each in epoch_of(lane(stream(num_rows=40, num_files=1), window=8))]
    for number in range(5):
        window = order[8 * number : 8 * number + 8]
        assert sorted(window) == list(range(8 * number, 8 * number + 8))
        assert window != sorted(window)


def test_a_lane_that_has_no_whole_batch_says_what_to_do():
    with pytest.raises(ValueError, match=r"Lane 1 of 6 of a stream has 4 instances, a batch draws 5 of it; lower"):
        lane(stream(), number=1, num_lanes=6).take(5)


def test_a_lane_that_is_dealt_a_small_file_waits_for_the_next_deal():
    readers = [lane(stream(num_rows=11, num_files=2), number, 2) for number in range(2)]
    taken = [[reader.take(6) for _ in range(4)] for reader in readers]
    assert all(len(set(ids(rows))) == 6 for rows in taken[0] + taken[1])
    assert {rows[0]["epoch"] for rows in taken[0]} & {rows[0]["epoch"] for rows in taken[1]} == set()


def test_rows_have_their_prefix_and_their_images_stay_encoded():
    (row,) = islice(stream(prefix="1:").rows(), 1)
    assert row["instance_id"] == "1:0"
    assert row["images"] == [{"bytes": b"x", "path": None}]
    assert list(stream().rows(columns=("instance_id", "captions")))[22] == {"instance_id": "22", "captions": ["a"]}


def batches_of(rows, amount, num_workers=0):
    """The first batches as ids, and the state beside each."""
    loader = DataLoader(rows, batch_size=None, num_workers=num_workers, collate_fn=list)
    return [(ids(batch), states) for batch, states in islice(loader, amount)]


def test_two_ranks_with_two_workers_each_read_every_instance_once():
    # Six instances a file; a step of four takes each lane's six in three batches, one in turn from each worker.
    options = {"weights": [1.0], "batch_size": 4, "window": 3, "seed": 0, "num_ranks": 2, "num_workers": 2}
    ranks = [batches_of(StreamedRows([stream(24, 4)], rank=rank, **options), 6, num_workers=2) for rank in range(2)]
    found = [each for batches in ranks for batch, _ in batches for each in batch]
    assert sorted(found, key=int) == list(map(str, range(24)))


def test_a_mixture_of_streams_draws_by_weights_and_keeps_their_epochs_apart():
    rows = StreamedRows([stream(30, 2, "a"), stream(8, 1, "b")], [3, 1], batch_size=8, window=4, seed=0)
    batches = [batch for batch, _ in islice(rows, 12)]
    drawn = [row["instance_id"][0] for batch in batches for row in batch]
    assert (drawn.count("a"), drawn.count("b")) == (72, 24)
    second = [row for batch in batches for row in batch if row["instance_id"][0] == "b"]
    assert [row["epoch"] for row in second] == [0] * 8 + [1] * 8 + [2] * 8
    assert len({(row["instance_id"], row["epoch"]) for row in second}) == 24


def test_workers_without_files_are_not_started():
    assert usable_workers([stream(num_files=6)], 4, 1) == 4
    assert usable_workers([stream(num_files=6)], 4, 2) == 3
    assert usable_workers([stream(num_files=1)], 4, 2) == 1
    assert usable_workers([stream(num_files=1)], 0, 2) == 0


def test_parquet_files_count_by_row_groups_where_there_are_too_few(tmp_path):
    rows = Dataset.from_dict({"instance_id": list(map(str, range(12)))})
    rows.to_parquet(tmp_path / "train.parquet", batch_size=3)
    source = Stream(load_dataset(str(tmp_path), split="train", streaming=True))
    assert source.num_units(1) == 1
    assert source.num_units(3) == 4
    parts = [epoch_of(lane(source, number, 3)) for number in range(3)]
    assert sorted((each for part in parts for each in part), key=int) == list(map(str, range(12)))
