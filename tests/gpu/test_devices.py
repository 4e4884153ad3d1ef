"""The model, the objectives and the guards on a GPU, against the CPU: `make test-gpu`.

Each test also runs with the CPU in the place of the GPU, where it can tell little, so that it is known to run; of the
objectives a few do.
"""

import math
from importlib.util import find_spec

import pytest
import torch

from modeling_mxmclr import contrast_mxmclr
from tests.references.device_jobs import step_of
from tests.references.observed import SCALE, VARIANTS
from tests.references.tiny import tiny_batch, tiny_model
from tests.training.test_guards import made, named_batch, session  # noqa: F401 - a fixture
from training.guards import Guards

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_flash = pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash-attn")
CUDA = (pytest.mark.gpu, needs_cuda)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
COMPILERS = [pytest.param("cpu", "aot_eager", marks=pytest.mark.slow), pytest.param("cuda", "inductor", marks=CUDA)]
OBJECTIVE_PLACES = [("cpu", label) for label in ("mfh", "siglip", "unicl")]
OBJECTIVE_PLACES += [pytest.param("cuda", label, marks=CUDA) for label in VARIANTS]
# Embeddings are at least 16 wide here, which flash attention takes for a head only if heads are few.
ATTENTION = {
    "sdpa": ("cpu", "sdpa", "eager", torch.float32, 1e-5),
    "flash": pytest.param("cuda", "flash_attention_2", "eager", torch.bfloat16, 3e-2, marks=(*CUDA, needs_flash)),
}


def outcome(label: str, device: str) -> dict[str, torch.Tensor]:
    """An objective's loss, and its gradients in embeddings and scale, on a device; the answer is on the CPU."""
    variant = VARIANTS[label]
    drawn = variant.draw()
    leaves = {
        name: getattr(drawn, name).detach().to(device).requires_grad_() for name in ("image_embeds", "text_embeds")
    }
    ids = {name: getattr(drawn, name).to(device) for name in ("image_group_ids", "text_group_ids")}
    beside = {
        name: value.detach().to(device) if isinstance(value, torch.Tensor) else value
        for name, value in variant.inputs(drawn).items()
    }
    leaves["scale"] = SCALE.detach().to(device).requires_grad_()
    embeds = {name: rows for name, rows in leaves.items() if name != "scale"}
    loss = variant.loss(drawn._replace(**embeds, **ids), leaves["scale"], **beside)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach().cpu()} | {name: each.cpu() for name, each in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize(("device", "label"), OBJECTIVE_PLACES)
@pytest.mark.parametrize("form", ["matrix", "tiles"])
def test_an_objective_is_the_one_of_the_cpu(label, form, device, monkeypatch):
    expected = outcome(label, "cpu")
    if form == "tiles":
        monkeypatch.setattr(contrast_mxmclr, "MATRIX_LOGITS", -1)
    found = outcome(label, device)
    largest = max(gradient.abs().max() for name, gradient in expected.items() if name != "loss")
    torch.testing.assert_close(found.pop("loss"), expected.pop("loss"), rtol=1e-10, atol=1e-10)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10 * float(largest.clamp(min=1)))


@every_device
@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("bf16", 5e-2)])
def test_a_step_is_the_one_of_the_cpu(kind, tolerance, device):
    loss, gradients = step_of(kind, "mfh", tiny_batch(), torch.device(device), wrap=False)
    expected, its_gradients = step_of("float32", "mfh", tiny_batch(), torch.device("cpu"), wrap=False)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert gradients.keys() == its_gradients.keys()
    largest = max(abs(rows).max() for rows in its_gradients.values())
    assert max(abs(gradients[name] - rows).max() for name, rows in its_gradients.items()) <= 4 * tolerance * largest


@every_device
def test_embeddings_and_loss_stay_in_float32_under_bf16(device):
    model = tiny_model().to(device)
    with torch.autocast(device, torch.bfloat16):
        output = model(**{name: rows.to(device) for name, rows in tiny_batch().items()})
    assert {output.loss.dtype, output.image_embeds.dtype, output.text_embeds.dtype} == {torch.float32}


@pytest.mark.parametrize(("device", "attention", "reference", "dtype", "tolerance"), ATTENTION.values(), ids=ATTENTION)
def test_another_attention_embeds_alike(device, attention, reference, dtype, tolerance):
    embeds = {}
    for implementation in (reference, attention):
        model = tiny_model().to(device, dtype)
        model.set_attn_implementation(implementation)
        batch = {name: rows.to(device) for name, rows in tiny_batch(dtype).items()}
        output = model(**batch, return_loss=False)
        embeds[implementation] = torch.cat([output.image_embeds, output.text_embeds])
    torch.testing.assert_close(embeds[attention], embeds[reference], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("device", "backend"), COMPILERS)
def test_compiled_towers_give_the_same_loss_for_batches_of_two_sizes(device, backend):
    plain, compiled = tiny_model().to(device), tiny_model().to(device)
    for name in ("text_model", "vision_model"):
        getattr(compiled, name).compile(backend=backend, dynamic=True)
    batch = {name: rows.to(device) for name, rows in tiny_batch().items()}
    for num_texts in (6, 4):
        part = {name: rows[:num_texts] if name[:3] in ("inp", "att", "tex") else rows for name, rows in batch.items()}
        torch.testing.assert_close(compiled(**part).loss, plain(**part).loss, rtol=1e-4, atol=1e-4)


@every_device
def test_a_guard_that_does_not_wait_for_its_step_names_the_guilty_batch(device, session):  # noqa: F811
    session.accelerator.device = torch.device(device)
    guards = Guards(session, is_late=True)
    for step, loss in ((1, 1.0), (2, math.nan)):
        output = made(loss)
        for name, value in vars(output).items():
            setattr(output, name, value.to(device))
        guards.check_loss(step, named_batch(), output)
        guards.check_gradient(step, torch.tensor(1.0, device=device))
    with pytest.raises(FloatingPointError, match="got nan at step 2"):
        guards.settle()
