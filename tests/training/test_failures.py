import pytest
import torch

from training.failures import count_fitting, first_of_each_instance, shared_texts, worst_queries

CAPTIONS = ["a red chair", "Red", "a chair, tall", "red chair", "a stool", "", "chair a"]
GROUP_IDS = torch.tensor([5, 5, 6, 6, 7, 7, 7])


def fitting_by_loops(captions: list[str], group_ids: list[int]) -> list[int]:
    """For each caption, every other instance is asked whether it has every word."""

    def words(caption):
        return {word for word in caption.lower().replace(",", " ").split() if word}

    counts = []
    for caption, owner in zip(captions, group_ids, strict=True):
        count = 0
        for other in set(group_ids) - {owner}:
            said = set()
            for each, group_id in zip(captions, group_ids, strict=True):
                if group_id == other:
                    said |= words(each)
            count += words(caption) <= said
        counts.append(count)
    return counts


def test_a_caption_fits_the_instances_that_have_all_of_its_words():
    counts = count_fitting(CAPTIONS, GROUP_IDS)
    assert counts == fitting_by_loops(CAPTIONS, GROUP_IDS.tolist())
    assert counts == [1, 1, 0, 1, 0, 2, 2]


def test_identical_captions_fit_each_other():
    assert count_fitting(["a b", "b  A!", "a-b", "c"], torch.tensor([1, 2, 3, 4])) == [2, 2, 2, 0]


def test_words_of_any_script_count():
    assert count_fitting(["красный стул", "стул", "椅子"], torch.tensor([1, 2, 3])) == [0, 1, 0]


def test_the_order_of_captions_changes_no_count():
    order = torch.randperm(len(CAPTIONS), generator=torch.Generator().manual_seed(0))
    counts = torch.tensor(count_fitting(CAPTIONS, GROUP_IDS))
    assert count_fitting([CAPTIONS[row] for row in order], GROUP_IDS[order]) == counts[order].tolist()


def test_the_worst_queries_are_of_different_instances_and_never_hits():
    ranks = torch.tensor([3.0, 9.5, 1.0, 40.0, 41.0, 2.0])
    group_ids = torch.tensor([5, 5, 6, 7, 7, 8])
    assert worst_queries(ranks, group_ids, count=9) == [4, 1, 5]
    assert worst_queries(ranks, group_ids, count=2) == [4, 1]
    assert worst_queries(torch.ones(3), group_ids[:3], count=2) == []


def test_no_more_rows_than_asked_for():
    assert first_of_each_instance([3, 2, 1, 0], torch.tensor([1, 2, 3, 4]), 2) == [3, 2]


def test_texts_of_most_instances_come_first():
    shared = shared_texts(["b", "a", "a", "b", "a", "c"], torch.tensor([1, 1, 2, 3, 3, 1]))
    assert [(each.text, each.group_ids) for each in shared] == [("a", [1, 2, 3]), ("b", [1, 3])]


def test_repeats_within_an_instance_are_not_shared():
    assert shared_texts(["a", "a", "A"], torch.tensor([1, 1, 2])) == []


def test_captions_without_ids_are_an_error():
    for function in (shared_texts, count_fitting):
        with pytest.raises(ValueError, match="zip"):
            function(["a", "b"], torch.tensor([1]))
