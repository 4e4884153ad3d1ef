"""Search in a gallery that is split over ranks, each with a part that it embedded itself."""

from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor


def gather_ranks(rows: Tensor) -> list[Tensor]:
    """The tensors of all ranks, of one shape, in rank order; every rank must call it, and one process gets its own.

    As `gather` of `rank_positives` and `top_k` it makes each rank's gallery a part of one: all ranks pass the same
    queries, and all get the answer in the whole gallery, whose rows count on from rank to rank.
    """
    everywhere: Tensor = gather(rows[None].contiguous().to(PartialState().device))
    return list(everywhere.to(rows.device))
