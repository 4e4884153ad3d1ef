"""The vectors of a text tower for as long as it doesn't change, each caption encoded once and hardly padded."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.buckets_mxmclr import cheapest_ends

BATCH_TOKENS = 4096
BATCH_CAPTIONS = 512
MOST_LENGTHS = 32


class FrozenTextFeatures:
    """What `MXMCLRModel.get_text_tower_output` gives for each of some captions.

    Args:
        captions: The captions, each once.
        features: `(num_captions, width)`.
    """

    def __init__(self, captions: Sequence[str], features: Tensor) -> None:
        self.features = features
        self.rows = {caption: row for row, caption in enumerate(captions)}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Their features, `(num_captions, width)`."""
        return self.features[torch.tensor([self.rows[caption] for caption in captions], dtype=torch.int64)]

    @classmethod
    @torch.no_grad()
    def encode(
        cls, model: MXMCLRModel, processor: MXMCLRProcessor, owners: Mapping[str, str], show_progress: bool = False
    ) -> "FrozenTextFeatures":
        """Run the text tower over captions, in eval mode, those of like length together.

        Args:
            model: The model, on the device that is to be used.
            processor: Its processor.
            owners: The captions, and the `instance_id` of one instance that has each, for messages.
            show_progress: Whether to show a bar.
        """
        was_training, text_buckets = model.text_model.training, model.text_buckets
        model.text_model.eval()
        model.text_buckets = 1  # of texts as long as each other
        batches = list(batch_by_length(processor, sorted(owners))) or [[]]
        features = []
        for batch in tqdm(batches, desc="text tower", disable=not show_progress, leave=False):
            ids = [owners[caption] for caption in batch]
            tokens = processor(text=[[caption] for caption in batch], instance_ids=ids).to(model.device)
            tokens.pop("text_group_ids")
            features.append(model.get_text_tower_output(**tokens).cpu())
        model.text_model.train(was_training)
        model.text_buckets = text_buckets
        return cls([caption for batch in batches for caption in batch], torch.cat(features))


def batch_by_length(processor: MXMCLRProcessor, captions: Sequence[str]) -> Iterator[list[str]]:
    """All captions, the shortest first, in batches that a model takes at once and that cost least.

    Args:
        processor: Its tokenizer says how long they are.
        captions: Any captions; their order decides among those of equal length.
    """
    tokens = processor.tokenizer(list(captions), truncation=True)["input_ids"] if captions else []
    lengths, order = torch.tensor([len(each) for each in tokens], dtype=torch.int64).sort(stable=True)
    start = 0
    for end in cheapest_ends(lengths, MOST_LENGTHS):
        size = max(1, min(BATCH_CAPTIONS, BATCH_TOKENS // int(lengths[end - 1])))
        for first in range(start, end, size):
            yield [captions[place] for place in order[first : min(first + size, end)].tolist()]
        start = end
