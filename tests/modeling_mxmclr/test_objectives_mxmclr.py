"""What holds of every objective and term alike, and the way in: `compute_objective`, `get_objective`, settings."""

import pytest
import torch
from torch import Tensor

from modeling_mxmclr.folds_mxmclr import Observations
from modeling_mxmclr.objectives_mxmclr import (
    EQUAL_FOLDS,
    OBJECTIVES,
    compute_objective,
    get_objective,
    input_names,
    setting_names,
)
from modeling_mxmclr.terms_mxmclr import TERMS
from tests.references import mfh_loops, objective_loops, tuple_loops
from tests.references.observed import (
    OBJECTIVE_VARIANTS,
    RAGGED_IDS,
    SCALE,
    VARIANTS,
    Variant,
    assert_near,
    assert_same,
    draw,
    gradients,
)

LOOPS = {
    name: getattr(module, f"{name}_loops")
    for module in (mfh_loops, objective_loops, tuple_loops)
    for name in OBJECTIVES
    if hasattr(module, f"{name}_loops")
}
# Losses whose draw is a function of the order of instances, which is that of their ids.
DRAWN = ("symile", "term mixup", "term mixup of halves")

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def test_every_objective_and_term_is_among_the_variants():
    assert {variant.name for variant in OBJECTIVE_VARIANTS.values()} == set(OBJECTIVES) == set(LOOPS)
    terms = {term for variant in VARIANTS.values() for term in variant.settings.get("terms", {})}
    assert terms == set(TERMS)


@pytest.mark.parametrize("label", OBJECTIVE_VARIANTS)
def test_loss_is_its_definition_as_loops(label):
    variant = OBJECTIVE_VARIANTS[label]
    observed = variant.draw()
    expected = LOOPS[variant.name](observed, SCALE.item(), **variant.settings, **variant.inputs(observed))
    assert_near(variant.loss(observed), expected, 1e-12)


@every_variant
def test_gradient_is_that_of_finite_differences(variant):
    observed = variant.draw()
    inputs = variant.inputs(observed)
    settings = dict(variant.settings)
    if variant.name == "mfh":  # constant targets, whose gradient is none, would move in the differences
        settings |= {"soft_detach": False, "soft_temperature": settings.get("soft_temperature", 0.3)}
    if variant.name == "soft_clip":
        settings |= {"soft_detach": False}
    if variant.name == "cwcl":
        inputs = inputs or OBJECTIVE_VARIANTS["cwcl of references"].inputs(observed)
    objective = get_objective(variant.name, settings)
    # The momentum model's targets are as sharp as the scale, and constants.
    scale_is_constant = "image_momentum_embeds" in inputs

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return objective(Observations(images, texts, *observed[2:]), scale, **inputs).loss

    assert torch.autograd.gradcheck(
        loss, (*observed[:2], SCALE.clone().requires_grad_(not scale_is_constant)), fast_mode=True
    )


def reordered(variant: Variant, observed: Observations, orders: list[Tensor]) -> tuple[Observations, dict]:
    """The observations in other orders, and what the variant takes beside them likewise."""
    image_order, text_order = orders
    shuffled = Observations(
        observed.image_embeds[image_order],
        observed.text_embeds[text_order],
        observed.image_group_ids[image_order],
        observed.text_group_ids[text_order],
    )
    inputs = variant.inputs(observed)
    for name, order in (("image_", image_order), ("text_", text_order)):
        moved = {key: rows[order] for key, rows in inputs.items() if key.startswith(name) and "queue" not in key}
        inputs |= moved
    return shuffled, inputs


def other_order(ids: Tensor, within_folds: bool, seed: int) -> Tensor:
    """A random order; without `within_folds` the observations of an instance follow each other as before."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    for instance in () if within_folds else ids.unique():
        places = ids[order] == instance
        order[places] = order[places].sort().values
    return order


@every_variant
def test_order_does_not_matter(variant):
    """That of observations; where their place in a fold means something, that of instances."""
    observed = variant.draw()
    orders = [
        other_order(ids, not variant.observation_order_matters, seed)
        for seed, ids in enumerate(observed[2:4], start=1)
    ]
    shuffled, inputs = reordered(variant, observed, orders)
    ours, theirs = variant.loss(shuffled, **inputs), variant.loss(observed)
    assert_same(ours, theirs, observed, 1e-11)


ORDERED = [label for label, variant in VARIANTS.items() if variant.observation_order_matters]


@pytest.mark.parametrize("label", ORDERED)
def test_the_order_within_folds_matters_where_it_is_said_to(label):
    observed = VARIANTS[label].draw()
    images, texts = (torch.cat([rows[[1, 0]], rows[2:]]) for rows in observed[:2])
    turned = observed._replace(image_embeds=images, text_embeds=texts)
    assert (VARIANTS[label].loss(turned) - VARIANTS[label].loss(observed)).abs() > 1e-6


@pytest.mark.parametrize("label", VARIANTS)
def test_group_ids_mean_nothing_but_equality(label):
    variant = VARIANTS[label]
    observed = variant.draw()
    inputs = variant.inputs(observed)
    rename = (lambda ids: 2**40 * (ids + 1)) if label in DRAWN else (lambda ids: -(2**40) * (ids + 1))
    renamed = observed._replace(
        image_group_ids=rename(observed.image_group_ids), text_group_ids=rename(observed.text_group_ids)
    )
    if "queue_group_ids" in inputs:
        inputs["queue_group_ids"] = rename(inputs["queue_group_ids"])
    assert_near(variant.loss(renamed, **inputs), variant.loss(observed), 1e-12)


@every_variant
@pytest.mark.filterwarnings("ignore:No instance of this batch:UserWarning")
def test_loss_without_any_pair_is_zero_and_still_attached(variant):
    for image_ids, text_ids in (([0, 0, 1], [2, 3]), ([], [0, 0]), ([1], []), ([], [])):
        observed, scale = draw(image_ids, text_ids), SCALE.clone().requires_grad_()
        loss = variant.loss(observed, scale)
        assert loss.item() == 0
        assert loss.requires_grad
        assert not any(gradient.any() for gradient in gradients(loss, *observed[:2], scale))


@every_objective
def test_a_batch_without_any_pair_warns(name):
    with pytest.warns(UserWarning, match="both an image and a text"):
        get_objective(name)(draw([0, 0, 1], [2, 3]), SCALE)


@pytest.mark.parametrize("name", sorted(EQUAL_FOLDS))
def test_rectangular_objectives_refuse_ragged_folds(name):
    with pytest.raises(ValueError, match=rf"`{name}` needs as many \w+s of every instance, got folds of 0 to 3"):
        get_objective(name)(draw(*RAGGED_IDS), SCALE)
    with pytest.raises(ValueError, match="got folds of 1 to 2; draw equal folds, or choose an objective that takes"):
        get_objective(name)(draw([0, 0, 1, 1], [0, 1, 1]), SCALE)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - EQUAL_FOLDS))
def test_the_others_take_ragged_folds(name):
    assert get_objective(name)(draw(*RAGGED_IDS), SCALE).loss.isfinite()


def test_objectives_over_tuples_need_three_observations():
    for name in ("gram", "symile"):
        with pytest.raises(ValueError, match=f"`{name}` needs three observations of every instance, got 2"):
            get_objective(name)(draw([0, 1], [0, 1]), SCALE)
    for name in ("mv_infonce", "mv_dhel", "pvc", "ntxent"):
        with pytest.raises(ValueError, match=f"`{name}` needs at least two views an instance, got one"):
            get_objective(name, {"sides": "texts"})(draw([0, 1], [0, 1]), SCALE)


def test_compute_objective_takes_a_scale_as_tensor_number_or_not_at_all():
    observed = draw()
    expected = OBJECTIVES["mfh"](observed, torch.tensor(1 / 0.07, dtype=torch.float64)).loss
    for scale in (None, 1 / 0.07, torch.tensor([1 / 0.07], dtype=torch.float64)):
        loss = compute_objective("mfh", *observed[:4], scale=scale).loss
        assert loss.dtype == torch.float64
        assert_near(loss, expected, 1e-15)
    assert_near(
        compute_objective("clip", *observed[:4], scale=7).loss, OBJECTIVES["clip"](observed, SCALE).loss, 1e-15
    )


def test_compute_objective_takes_settings_terms_and_inputs_alike():
    observed = draw()
    reference = draw(dim=6, seed=5).image_embeds.detach()
    output = compute_objective(
        "cwcl",
        *observed[:4],
        scale=SCALE,
        text_weights="raw",
        image_reference_embeds=reference,
        terms={"near_frozen": 0.5, "uniformity": {"weight": 2.0, "t": 3.0}},
    )
    own = OBJECTIVES["cwcl"](observed, SCALE, text_weights="raw", image_reference_embeds=reference)
    near = TERMS["near_frozen"](observed, SCALE, image_reference_embeds=reference)
    uniform = TERMS["uniformity"](observed, SCALE, t=3.0)
    assert_near(output.loss, own.loss + 0.5 * near + 2 * uniform, 1e-15)
    assert_near(output.components["near_frozen"], near, 1e-15)
    assert_near(output.components["uniformity"], uniform, 1e-15)
    assert output.components.keys() == own.components.keys() | {"near_frozen", "uniformity"}


@every_objective
def test_terms_add_up_and_are_among_the_components(name):
    observed = draw([0, 0, 1, 1, 2, 2], [0, 1, 2])
    weights = {term: 0.1 * place for place, term in enumerate(TERMS, start=1) if term != "near_frozen"}
    plain, output = get_objective(name)(observed, SCALE), get_objective(name, {"terms": weights})(observed, SCALE)
    parts = {term: TERMS[term](observed, SCALE) for term in weights}
    assert_near(output.loss, plain.loss + sum(weights[term] * part for term, part in parts.items()), 1e-12)
    for term, part in parts.items():
        assert_near(output.components[term], part, 1e-12)
    assert output.components.keys() == plain.components.keys() | weights.keys()


def test_terms_count_with_a_single_instance_whose_loss_is_zero():
    observed = draw([0, 0], [0])
    alone = get_objective("mv_infonce")(observed, SCALE).loss
    output = get_objective("mv_infonce", {"terms": {"alignment": 1.0}})(observed, SCALE)
    assert_near(alone, 0.0, 1e-12)
    assert_near(output.loss, TERMS["alignment"](observed, SCALE), 1e-12)


def test_a_soft_weight_of_the_step_reaches_mfh_beside_terms():
    observed = draw()
    stepped = get_objective("mfh", {"terms": {"alignment": 1.0}})(observed, SCALE, soft_weight=0.2)
    settled = get_objective("mfh", {"soft_weight": 0.2, "terms": {"alignment": 1.0}})(observed, SCALE)
    assert_near(stepped.loss, settled.loss, 0.0)


@every_variant
def test_components_are_detached_numbers(variant):
    for name, value in variant.output(variant.draw()).components.items():
        assert value.shape == (), name
        assert not value.requires_grad, name


def test_inputs_are_told_apart_from_settings():
    assert input_names("siglip") == {"bias"}
    assert setting_names("siglip") == ["normaliser"]
    assert input_names("clip", {"terms": {"near_frozen": 1.0}}) == {"image_reference_embeds", "text_reference_embeds"}
    assert {name for name in OBJECTIVES if input_names(name)} == {"cwcl", "mfh", "siglip", "tcl"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mse", {}, r"`objective` must be one of \['clip', 'cwcl', .*\], got 'mse'"),
        ("clip", {"soft_weight": 0.5}, "`objective_settings` of 'clip' must be among"),
        ("mfh", {"lambda": 0.5}, "'lambda'"),
        ("mfh", {"soft_weight": 1.5}, r"`soft_weight` must be a number in \[0, 1\], got 1.5"),
        ("mfh", {"soft_weight": True}, "`soft_weight` must be a number"),
        ("mfh", {"soft_source": "image"}, "`soft_source` must be a number"),
        ("mfh", {"soft_temperature": 0}, "`soft_temperature` must be a positive number or None"),
        ("mfh", {"hard_form": "outer"}, "`hard_form` must be one of"),
        ("mfh", {"soft_columns": "rows"}, "`soft_columns` must be one of"),
        ("mfh", {"normaliser": "images"}, "`normaliser` must be one of"),
        ("mfh", {"soft_detach": "no"}, "`soft_detach` must be True or False"),
        ("siglip", {"bias": -10.0}, "`objective_settings` of 'siglip' must be among"),
        ("hn_nce", {"alpha": -1.0}, "`alpha` must be a number of at least 0, got -1.0"),
        ("clip", {"terms": {"vicregs": 1.0}}, r"`terms` must be one of \['alignment', .*\], got 'vicregs'"),
        ("clip", {"terms": {"vicreg": -1.0}}, "`weight` must be a number of at least 0, got -1.0"),
        ("clip", {"terms": {"vicreg": {"t": 2.0}}}, r"`terms\['vicreg'\]` must be among .*, got 't'"),
        ("clip", {"terms": {"uniformity": {"t": 0}}}, "`t` must be a positive number, got 0"),
        ("clip", {"terms": ["vicreg"]}, r"`terms` must map names of terms to weights or settings, got \['vicreg'\]"),
    ],
)
def test_bad_settings_name_the_culprit(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_objective(name, settings)
