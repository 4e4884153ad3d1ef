"""The embeddings of the last batches, as further keys of the next one: more negatives at no price of encoding."""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from modeling_mxmclr import MXMCLROutput
from modeling_mxmclr.distributed_mxmclr import gather_batch
from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import check_remembers
from training.initial_embeddings import FIELDS
from training.session import Session


class BatchMemory:
    """What all ranks observed in the last batches.

    Cross-batch memory, XBM (https://huggingface.co/papers/1912.06798). An embedding is as stale as its batch is old: while
    the towers still move fast it misleads, and from the start on a run can collapse. So it is used from later on.

    Args:
        size: How many batches are kept.
        first: The batch, from 0, from which on they are used.
    """

    def __init__(self, size: int, first: int) -> None:
        self.size, self.first, self.seen = size, first, 0
        self.kept: deque[Observations] = deque(maxlen=size)

    @classmethod
    def of(cls, session: Session) -> "BatchMemory":
        """The memory of a run, which may be none.

        Raises:
            ValueError: For an objective that can't have one; said before the run, not when it is first used.
        """
        options, config = session.arguments.optimization, session.model.config
        if options.memory_batches:
            check_remembers(config.objective, config.objective_settings)
        batches = options.max_steps * options.gradient_accumulation_steps
        return cls(options.memory_batches, int(options.memory_from * batches))

    def inputs(self) -> dict[str, Observations]:
        """What the model takes beside the next batch."""
        if not self.kept or self.seen < self.first:
            return {}
        return {"memory": Observations(*map(torch.cat, zip(*(each[:4] for each in self.kept), strict=True)))}

    def keep(self, batch: Mapping[str, Tensor], output: MXMCLROutput) -> None:
        """Remember a batch of this rank, and those of all others; every rank must call it."""
        self.seen += 1
        if self.size == 0 or self.seen < self.first - self.size:
            return
        embeds = [rows.detach() for rows in (output.image_embeds, output.text_embeds) if rows is not None]
        ids = [batch[name].to(rows.device) for name, rows in zip(FIELDS[2:], embeds, strict=True)]
        observed = Observations(*embeds, *ids)
        with torch.no_grad():
            self.kept.append(Observations(*gather_batch(observed, {}, {}).observed[:4]))

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, as safetensors takes it; the same on every rank."""
        rows = {
            f"{number}.{name}": tensor.contiguous()
            for number, each in enumerate(self.kept)
            for name, tensor in zip(FIELDS, each[:4], strict=True)
        }
        return {"seen": torch.tensor(self.seen), **rows}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `state_dict` gave."""
        self.seen = int(state["seen"])
        for number in range(len(state) // len(FIELDS)):
            self.kept.append(Observations(*(state[f"{number}.{name}"].to(device) for name in FIELDS)))
