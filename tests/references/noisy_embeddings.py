"""Embeddings of a small data set whose right answers a test can work out by itself."""

import torch
from torch import Tensor

from training.searches import Embeddings

NUM_INSTANCES, VIEWS, CAPTIONS = 12, 3, 2
FIRST_ID = 100


def unit_rows(num_rows: int, seed: int) -> Tensor:
    rows = torch.randn(num_rows, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def perturbed(rows: Tensor, noise: float, seed: int) -> Tensor:
    return torch.nn.functional.normalize(rows + noise * unit_rows(len(rows), seed), dim=1)


def noisy_embeddings() -> Embeddings:
    """Twelve instances of three noisy views and two noisier captions each, in two categories."""
    ids = torch.arange(FIRST_ID, FIRST_ID + NUM_INSTANCES)
    centres = unit_rows(NUM_INSTANCES, seed=0)
    return Embeddings(
        perturbed(centres.repeat_interleave(VIEWS, dim=0), 0.6, seed=1),
        ids.repeat_interleave(VIEWS),
        perturbed(centres.repeat_interleave(CAPTIONS, dim=0), 2.5, seed=2),
        ids.repeat_interleave(CAPTIONS),
        [f"caption {row}" for row in range(NUM_INSTANCES * CAPTIONS)],
        {group_id: f"shape-{group_id}" for group_id in ids.tolist()},
        {group_id: "chair" if group_id % 2 else "table" for group_id in ids.tolist()},
    )


def select_rows(embeddings: Embeddings, images: Tensor, texts: Tensor) -> Embeddings:
    """These images and texts alone, in this order."""
    return embeddings._replace(
        image_embeds=embeddings.image_embeds[images],
        image_group_ids=embeddings.image_group_ids[images],
        text_embeds=embeddings.text_embeds[texts],
        text_group_ids=embeddings.text_group_ids[texts],
        captions=[embeddings.captions[row] for row in texts],
    )


def shuffled(embeddings: Embeddings, seed: int = 3) -> Embeddings:
    """The same observations in another order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(embeddings.image_embeds), generator=generator)
    return select_rows(embeddings, images, torch.randperm(len(embeddings.captions), generator=generator))
