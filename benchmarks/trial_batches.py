"""What the steps of a trial see: which instances, and which observations of each."""

from functools import cached_property

import torch
from torch import Tensor

from benchmarks.fold_tensors import Fold, FoldTensors, crop
from benchmarks.trial import Trial
from modeling_mxmclr.folds_mxmclr import instance_embeddings, unit_norm
from modeling_mxmclr.objectives_mxmclr import EQUAL_FOLDS


class Batches:
    """The batches of a trial: instances by epochs, observations of each at random.

    Args:
        trial: What is drawn.
        data: The training split.
    """

    def __init__(self, trial: Trial, data: FoldTensors) -> None:
        self.trial, self.data = trial, data
        count = len(data.instance_ids)
        self.group_ids = data.group_ids
        self.images, self.texts = Fold.of(data.image_instance, count), Fold.of(data.text_instance, count)
        self.views, self.captions = trial.views, trial.captions
        if trial.objective in EQUAL_FOLDS:
            self.views = min(trial.views, int(self.images.sizes.min()))
            self.captions = min(trial.captions, int(self.texts.sizes.min()))
        self.generator = torch.Generator().manual_seed(trial.seed)
        self.waiting = torch.empty(0, dtype=torch.int64)

    @cached_property
    def centres(self) -> Tensor:
        """What instances are found alike by: the mean of each one's captions as the frozen tower has them, unit norm."""
        return instance_embeddings(unit_norm(self.data.texts), self.data.text_instance, "mean")

    def draw_instances(self, count: int) -> Tensor:
        """The next instances of the epoch, none of them twice."""
        count = min(count, len(self.group_ids))
        if self.trial.cluster_size is not None:
            return draw_clusters(self.centres, count, self.trial.cluster_size, self.generator)
        if len(self.waiting) < count:
            self.waiting = torch.randperm(len(self.group_ids), generator=self.generator)
        chosen, self.waiting = self.waiting[:count], self.waiting[count:]
        return chosen

    def draw_others(self, instances: Tensor, count: int) -> Tensor:
        """Up to `count` instances that are not among these."""
        order = torch.randperm(len(self.group_ids), generator=self.generator)
        return order[torch.isin(order, instances, invert=True)][:count]

    def draw(self, step: int) -> dict[str, Tensor]:
        """The next batch, as `MXMCLRModel.forward` takes it."""
        views, count = self.views, self.trial.instances
        if self.trial.late_views is not None and step > self.trial.steps // 2:
            views, count = self.trial.late_views, count * views // self.trial.late_views
        instances = self.draw_instances(count)
        images, of_image = self.images.draw(instances, views, self.generator)
        if self.trial.text_only_instances is not None:
            instances = torch.cat([instances, self.draw_others(instances, self.trial.text_only_instances)])
        texts, of_text = self.texts.draw(instances, self.captions, self.generator)
        pixels = crop(self.data.images[images], self.trial.image_size, self.trial.crop_scale, self.generator)
        return {
            "pixel_values": pixels.contiguous(memory_format=torch.channels_last),
            "image_group_ids": self.group_ids[instances][of_image],
            "text_tower_output": self.data.texts[texts],
            "text_group_ids": self.group_ids[instances][of_text],
        }


def draw_clusters(centres: Tensor, count: int, cluster_size: int, generator: torch.Generator) -> Tensor:
    """Different instances, `cluster_size` of them at a time near each other: a random one and the nearest not yet drawn.

    MCL (https://huggingface.co/papers/2307.05080) draws from clusters; here each is grown round a random instance.
    """
    free = torch.ones(len(centres), dtype=torch.bool)
    chosen: list[Tensor] = []
    while len(chosen) * cluster_size < count:
        places = free.nonzero()[:, 0]
        start = places[torch.randint(len(places), (), generator=generator)]
        likeness = (centres @ centres[start]).masked_fill(~free, -torch.inf)
        chosen.append(likeness.topk(min(cluster_size, len(places))).indices)
        free[chosen[-1]] = False
    return torch.cat(chosen)[:count]
