"""Two devices under DDP and NCCL against one process, for every objective: `make test-gpu`; on CPUs it is a slow test."""

import pytest
import torch

from modeling_mxmclr.objectives_mxmclr import EQUAL_FOLDS, OBJECTIVES
from tests.references.device_jobs import ddp_steps, step_of
from tests.references.gloo_pool import GlooPool
from tests.references.tiny import tiny_batch

# Those that a model computes from its batch alone, whatever the folds.
NAMES = sorted(set(OBJECTIVES) - EQUAL_FOLDS - {"clip", "soft_clip", "cwcl", "tcl", "pmrl"})
PLACES = [
    pytest.param("cpu", "gloo", marks=pytest.mark.slow),
    pytest.param(
        "cuda", "nccl",
        marks=(pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_two_ranks_take_the_step_of_one_process(device, backend):
    pool = GlooPool(2, backend)
    try:
        answers = pool.run(ddp_steps, device, NAMES)
    finally:
        pool.close()
    for name in NAMES:
        loss, gradients = step_of("float32", name, tiny_batch(), torch.device(device), wrap=False)
        largest = max(abs(rows).max() for rows in gradients.values())
        for found, its_gradients in (answer[name] for answer in answers):
            assert found == pytest.approx(loss, abs=1e-5 * max(1, abs(loss))), name
            for weight, rows in gradients.items():
                assert abs(its_gradients[weight] - rows).max() <= 1e-5 * largest, (name, weight)
