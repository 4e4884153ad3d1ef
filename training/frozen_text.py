"""The vectors of a text tower that never changes, computed once for all epochs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor

BATCH_SIZE = 128


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
        """Run the text tower over captions, in eval mode, batched by length so that padding is short.

        Args:
            model: The model, on the device that is to be used.
            processor: Its processor.
            owners: The captions, and the `instance_id` of one instance that has each, for messages.
            show_progress: Whether to show a bar.
        """
        distinct = sorted(owners, key=lambda caption: (len(caption), caption))
        was_training = model.text_model.training
        model.text_model.eval()
        batches = [distinct[start : start + BATCH_SIZE] for start in range(0, len(distinct), BATCH_SIZE)]
        features = []
        for batch in tqdm(batches, desc="frozen text tower", disable=not show_progress, leave=False):
            ids = [owners[caption] for caption in batch]
            tokens = processor(text=[[caption] for caption in batch], instance_ids=ids).to(model.device)
            tokens.pop("text_group_ids")
            features.append(model.get_text_tower_output(**tokens).float().cpu())
        model.text_model.train(was_training)
        return cls(distinct, torch.cat(features))
