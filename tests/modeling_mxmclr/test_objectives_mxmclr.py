import pytest
import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations, unit_norm
from modeling_mxmclr.objectives_mxmclr import OBJECTIVES, clip, get_objective, mfh
from tests.references.golden import CASES, golden_gradients, golden_observations, tangent
from tests.references.mfh_loops import clip_loops, mfh_loops

SCALE = torch.tensor([7.0], dtype=torch.float64)
# Instance 2 has no text and instance 5 no image: both stand in the denominators only.
IMAGE_IDS, TEXT_IDS = [0, 0, 0, 1, 2, 3, 3], [0, 0, 1, 3, 3, 5]
SETTINGS = {
    "defaults": {},
    "hard only": {"soft_weight": 0.0},
    "soft only": {"soft_weight": 1.0},
    "images decide": {"soft_source": 1.0},
    "texts decide": {"soft_source": 0.0, "soft_weight": 0.3},
    "own temperature": {"soft_temperature": 0.2},
    "transposed": {"soft_columns": "transposed", "soft_weight": 0.9},
    "in": {"hard_form": "in"},
    "ones": {"hard_form": "ones"},
    "one direction": {"direction_weight": 1.0},
    "other direction": {"direction_weight": 0.1},
    "instances": {"normaliser": "instances"},
    "pairs": {"normaliser": "pairs", "hard_form": "in"},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def draw(image_ids=IMAGE_IDS, text_ids=TEXT_IDS, dim=6, seed=0) -> Observations:
    generator = torch.Generator().manual_seed(seed)
    images = unit_norm(torch.randn(len(image_ids), dim, dtype=torch.float64, generator=generator))
    texts = unit_norm(torch.randn(len(text_ids), dim, dtype=torch.float64, generator=generator))
    return Observations(
        images.requires_grad_(), texts.requires_grad_(), torch.tensor(image_ids), torch.tensor(text_ids)
    )


def gradients(loss: Tensor, observed: Observations) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, observed[:2])


@every_setting
def test_mfh_is_its_definition_as_loops(settings):
    observed = draw()
    expected = torch.tensor(mfh_loops(observed, SCALE.item(), **settings), dtype=torch.float64)
    torch.testing.assert_close(mfh(observed, SCALE, **settings).loss, expected, rtol=1e-12, atol=1e-12)


def test_clip_is_its_definition_as_loops():
    observed = draw()
    expected = torch.tensor(clip_loops(observed, SCALE.item()), dtype=torch.float64)
    torch.testing.assert_close(clip(observed, SCALE).loss, expected, rtol=1e-12, atol=1e-12)


@every_setting
def test_gradients_of_mfh_are_those_of_finite_differences(settings):
    image_ids, text_ids = torch.tensor(IMAGE_IDS), torch.tensor(TEXT_IDS)
    constant = settings | {"soft_detach": False, "soft_temperature": settings.get("soft_temperature", 0.3)}

    def loss(images, texts, scale):
        return mfh(Observations(images, texts, image_ids, text_ids), scale, **constant).loss

    observed = draw()
    assert torch.autograd.gradcheck(loss, (*observed[:2], SCALE.clone().requires_grad_()))


def test_detached_targets_are_constants():
    observed = draw()
    images = observed.image_embeds.detach().requires_grad_()
    moving, fixed = (
        torch.autograd.grad(mfh(observed._replace(image_embeds=images), SCALE, soft_detach=detach).loss, images)[0]
        for detach in (False, True)
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(moving, fixed)


def golden_case(name: str) -> tuple[Tensor, Observations]:
    """Ours for a case of the peers', fed with the rows that it was fed with."""
    observed, hyper = golden_observations(name), CASES[name]["hyper"]
    temperature = hyper.get("temperature", hyper.get("temp"))
    scale = torch.tensor([hyper.get("logit_scale") or 1 / temperature], dtype=torch.float64)
    first_images, first_texts = (ids.diff(prepend=ids[:1] - 1) != 0 for ids in observed[2:])
    if "ccrk.t1" in name or "soft_clip" in name:
        fed = observed._replace(
            text_embeds=observed.text_embeds[first_texts], text_group_ids=observed.text_group_ids[first_texts]
        )
    else:
        fed = observed
    if "ccrk.v1" in name or "soft_clip" in name:
        fed = fed._replace(
            image_embeds=fed.image_embeds[first_images], image_group_ids=fed.image_group_ids[first_images]
        )
    if "clip.paired" in name and "soft" not in name:
        return clip(fed, scale).loss, observed
    if "soft_clip" in name:
        soft = {"soft_weight": 1.0, "soft_columns": "transposed", "soft_temperature": 1 / temperature}
        return mfh(fed, scale, **soft, soft_source=0.5, soft_detach=False).loss, observed
    if "ccrk" in name:
        loss = mfh(fed, scale, soft_weight=0.0, hard_form="ones").loss
        views, captions = CASES[name]["shapes"]["V"][1], CASES[name]["shapes"]["T"][1]
        fold_size = views if "t1_P" in name else captions
        return (loss if "nodiv" in name else loss / fold_size), observed
    return mfh(fed, scale, soft_weight=0.0).loss, observed


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_peers_code(name):
    loss, observed = golden_case(name)
    torch.testing.assert_close(loss.item(), CASES[name]["value"], rtol=1e-10, atol=1e-10)
    for ours, theirs, rows in zip(gradients(loss, observed), golden_gradients(name), observed[:2], strict=True):
        if "stablerep" in name or "soft_clip" in name:
            # They normalise inside, or we do where they don't: only the move along the sphere is common.
            ours, theirs = tangent(ours, rows), tangent(theirs, rows)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_hard_mfh_of_single_observations_is_clip():
    observed = draw(range(5), range(5))
    ours, clips = mfh(observed, SCALE, soft_weight=0.0).loss, clip(observed, SCALE).loss
    torch.testing.assert_close(ours, clips, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours, observed), gradients(clips, observed), rtol=1e-12, atol=1e-12)


def test_soft_becomes_hard_as_its_temperature_falls():
    observed = draw()
    soft = mfh(observed, SCALE, soft_weight=1.0, soft_temperature=1e-6).loss
    hard = mfh(observed, SCALE, soft_weight=0.0).loss
    torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(soft, observed), gradients(hard, observed), rtol=1e-12, atol=1e-12)


def test_inner_mean_never_exceeds_outer_mean():
    observed = draw()
    inner, outer = (mfh(observed, SCALE, soft_weight=0.0, hard_form=form).loss for form in ("in", "out"))
    assert inner < outer


def test_repeating_every_text_adds_the_log_of_the_repeats_to_image_to_text_alone():
    observed = draw()
    repeated = observed._replace(
        text_embeds=observed.text_embeds.repeat(3, 1), text_group_ids=observed.text_group_ids.repeat(3)
    )
    for share, added in ((1.0, torch.tensor(3.0).double().log()), (0.0, torch.tensor(0.0).double())):
        once, thrice = (mfh(o, SCALE, soft_weight=0.0, direction_weight=share).loss for o in (observed, repeated))
        torch.testing.assert_close(thrice - once, added, rtol=1e-12, atol=1e-12)


@every_setting
def test_order_of_observations_does_not_matter_to_mfh(settings):
    observed = draw()
    image_order, text_order = torch.tensor([3, 0, 6, 4, 1, 2, 5]), torch.tensor([5, 3, 0, 4, 1, 2])
    shuffled = Observations(
        observed.image_embeds[image_order],
        observed.text_embeds[text_order],
        observed.image_group_ids[image_order],
        observed.text_group_ids[text_order],
    )
    ours, theirs = mfh(shuffled, SCALE, **settings).loss, mfh(observed, SCALE, **settings).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours, observed), gradients(theirs, observed), rtol=1e-11, atol=1e-12)


@every_objective
def test_group_ids_mean_nothing_but_equality(objective):
    observed = draw()
    renamed = observed._replace(
        image_group_ids=-(2**40) * observed.image_group_ids, text_group_ids=-(2**40) * observed.text_group_ids
    )
    torch.testing.assert_close(objective(renamed, SCALE).loss, objective(observed, SCALE).loss)


@every_objective
def test_loss_without_any_pair_is_zero_with_a_warning_and_still_attached(objective):
    observed = draw([0, 0, 1], [2, 3])
    scale = SCALE.clone().requires_grad_()
    with pytest.warns(UserWarning, match="both an image and a text"):
        loss = objective(observed, scale).loss
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (*observed[:2], scale)):
        assert not gradient.any()


@every_objective
@pytest.mark.parametrize(("images", "texts"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_empty_sides_are_no_error(objective, images, texts):
    observed = draw(range(images), range(texts))
    if images and texts:
        assert objective(observed, SCALE).loss.isfinite()
    else:
        with pytest.warns(UserWarning, match="both an image and a text"):
            assert objective(observed, SCALE).loss.item() == 0


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_types_are_computed_in_float32_and_float64_stays(objective, dtype):
    observed = draw()
    cast = observed._replace(image_embeds=observed.image_embeds.to(dtype), text_embeds=observed.text_embeds.to(dtype))
    loss = objective(cast, torch.tensor([100.0])).loss
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.isfinite()


@pytest.mark.parametrize("scale", [100.0, 1e4])
@every_setting
def test_sharp_scales_stay_finite(settings, scale):
    observed = draw()
    loss = mfh(observed, torch.tensor([scale], dtype=torch.float64), **settings).loss
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, observed))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mse", {}, r"`objective` must be one of \['clip', 'mfh'\], got 'mse'"),
        ("clip", {"soft_weight": 0.5}, "`objective_settings` of 'clip' must be among"),
        ("mfh", {"lambda": 0.5}, "'lambda'"),
        ("mfh", {"soft_weight": 1.5}, r"`soft_weight` must be a number in \[0, 1\], got 1.5"),
        ("mfh", {"soft_source": "image"}, "`soft_source` must be a number"),
        ("mfh", {"soft_temperature": 0}, "`soft_temperature` must be a positive number"),
        ("mfh", {"hard_form": "outer"}, "`hard_form` must be one of"),
        ("mfh", {"soft_columns": "rows"}, "`soft_columns` must be one of"),
        ("mfh", {"normaliser": "images"}, "`normaliser` must be one of"),
        ("mfh", {"soft_detach": "no"}, "`soft_detach` must be one of"),
    ],
)
def test_bad_settings_name_the_culprit(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_objective(name, settings)
