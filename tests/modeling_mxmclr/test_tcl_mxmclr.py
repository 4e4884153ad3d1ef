"""TCL: its parts and their limits; its loops are in test_objectives_mxmclr.py."""

import pytest
import torch

from modeling_mxmclr.softmax_objectives_mxmclr import clip, supcon, unicl
from modeling_mxmclr.tcl_mxmclr import local_loss, tcl
from tests.references.observed import SCALE, assert_near, draw, local, queue


def test_without_a_momentum_model_it_is_unicl_and_supcon_within_modalities():
    observed = draw()
    parts = tcl(observed, SCALE).components
    ways = unicl(observed, SCALE).components
    assert_near(parts["image_to_text"], ways["image_to_text"], 1e-14)
    assert_near(parts["text_to_image"], ways["text_to_image"], 1e-14)
    for side, name in (("images", "image_to_image"), ("texts", "text_to_text")):
        assert_near(parts[name], supcon(observed, SCALE, sides=side, lonely="drop").loss, 1e-14)


def test_the_loss_is_the_mean_of_its_parts():
    observed = draw()
    loss, components = tcl(observed, SCALE, **queue(observed), **local(observed))
    parts = [value for name, value in components.items() if name != "kl"]
    assert len(parts) == 6
    assert_near(loss, sum(parts) / 6, 1e-14)


def test_a_momentum_model_that_is_the_model_makes_the_cross_modal_part_unicl():
    observed = draw(range(4), range(4))
    own = {"image_momentum_embeds": observed.image_embeds, "text_momentum_embeds": observed.text_embeds}
    parts = tcl(observed, SCALE, distill_weight=0.0, **own).components
    for name in ("image_to_text", "text_to_image"):
        assert_near(parts[name], clip(observed, SCALE).components[name], 1e-12)


def test_distilled_targets_that_the_model_meets_leave_no_kl_across_modalities():
    observed = draw(range(4), range(4))
    own = {"image_momentum_embeds": observed.image_embeds, "text_momentum_embeds": observed.text_embeds}
    whole = tcl(observed, SCALE, distill_weight=1.0, **own).components
    inside = sum(whole[name] for name in ("image_to_image", "text_to_text"))
    assert_near(whole["kl"], inside / 4, 1e-12)


def test_masked_features_count_nowhere():
    observed = draw()
    features = local(observed)
    rows, tokens, mask = observed.text_embeds, features["text_local_embeds"], features["text_local_mask"]
    other = torch.where(mask[:, :, None], tokens, tokens.flip(0) + 3)
    assert_near(local_loss(rows, other, mask, SCALE), local_loss(rows, tokens, mask, SCALE), 1e-14)


def test_a_single_row_has_no_local_negatives():
    observed = draw([0], [0])
    assert_near(local_loss(observed.image_embeds, observed.image_embeds[:, None], None, SCALE), 0.0, 1e-14)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("text_momentum_embeds", "`image_momentum_embeds` and `text_momentum_embeds` go together, got only one"),
        ("text_queue_embeds", "`text_queue_embeds` and `queue_group_ids` go together"),
        ("queue_group_ids", "`image_queue_embeds` and `queue_group_ids` go together"),
    ],
)
def test_features_that_belong_together_are_asked_for(missing, message):
    observed = draw()
    given = {name: rows for name, rows in queue(observed).items() if name != missing}
    with pytest.raises(ValueError, match=message):
        tcl(observed, SCALE, **given)


def test_a_queue_needs_a_momentum_model():
    observed = draw()
    given = {name: rows for name, rows in queue(observed).items() if "momentum" not in name}
    with pytest.raises(ValueError, match="`queue_group_ids` needs `image_momentum_embeds` and `text_momentum_embeds`"):
        tcl(observed, SCALE, **given)
