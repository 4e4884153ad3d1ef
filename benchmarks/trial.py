"""What a trial of a benchmark is: a short training by one objective on drawn folds, down to its seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """What is trained: everything but the data, so that equal trials are run once."""

    objective: str
    instances: int  # of a step
    views: int  # at most, of each instance of a step
    captions: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the objective
    seed: int = 0
    steps: int = 500
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.0  # before the heads
    logit_scale: float = 14.3  # where the learned scale starts
    hidden_sizes: Sequence[int] = (32, 64, 128)
    image_size: int = 48
    projection_dim: int = 256
    crop_scale: float = 0.8
    warmup_steps: int = 50
    evaluations: int = 5  # on the validation split, the last one at the end
    # Ways to learn more from the same images; None goes without, and equals a trial from before there was the way.
    memory_steps: int | None = None  # past steps whose embeddings are further keys
    memory_from: float | None = None  # share of the steps after which they are used; before, embeddings move too fast
    teacher: str | None = None  # whose embeddings the soft part relates instances by: `frozen` or `slow`
    cluster_size: int | None = None  # instances of a step are drawn together with so many like them
    soft_ramp: bool | None = None  # lets the soft part's weight grow from 0 to its setting while the trial lasts
    text_only_instances: int | None = None  # of which a step sees captions alone, as further keys of its images
    late_views: int | None = None  # views from half of the steps on, with as many instances as the same images allow

    @property
    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; ways that it doesn't go are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}
