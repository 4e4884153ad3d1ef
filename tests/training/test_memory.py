"""What a run remembers of its last batches, and from when on it uses it."""

import pytest
import torch

from modeling_mxmclr import MXMCLROutput
from training.memory import FIELDS, BatchMemory


def batch_and_output(number: int):
    """Two images and three texts whose values say which batch they are of."""
    batch = {
        "image_group_ids": torch.tensor([10 * number, 10 * number + 1]),
        "text_group_ids": torch.full((3,), 10 * number),
    }
    embeds = {"image_embeds": torch.full((2, 4), float(number)), "text_embeds": torch.full((3, 4), float(-number))}
    return batch, MXMCLROutput(**{name: rows.requires_grad_() for name, rows in embeds.items()})


def numbers(memory: BatchMemory) -> list[int]:
    """The batches that the next one sees."""
    given = memory.inputs()
    return given["memory"].image_embeds[::2, 0].int().tolist() if given else []


def test_the_last_batches_are_kept_from_when_on_they_are_wanted():
    memory, seen = BatchMemory(2, first=3), []
    for number in range(6):
        seen.append(numbers(memory))
        memory.keep(*batch_and_output(number))
    assert seen == [[], [], [], [1, 2], [2, 3], [3, 4]]


def test_a_batch_is_kept_as_it_was_without_gradient():
    memory = BatchMemory(1, first=0)
    batch, output = batch_and_output(7)
    memory.keep(batch, output)
    kept = memory.inputs()["memory"]
    for name in FIELDS:
        expected = batch[name] if name in batch else output[name]
        assert torch.equal(getattr(kept, name), expected)
    assert not kept.image_embeds.requires_grad


def test_a_memory_of_no_size_remembers_nothing():
    memory = BatchMemory(0, first=0)
    memory.keep(*batch_and_output(1))
    assert memory.inputs() == {}
    assert memory.state_dict().keys() == {"seen"}


@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_memory_goes_on_from_its_state(number):
    memory, other = BatchMemory(2, first=1), BatchMemory(2, first=1)
    for each in range(number):
        memory.keep(*batch_and_output(each))
    other.load_state_dict(memory.state_dict(), torch.device("cpu"))
    for one in (memory, other):
        one.keep(*batch_and_output(8))
    assert numbers(other) == numbers(memory)
    assert other.seen == memory.seen
