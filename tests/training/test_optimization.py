from tests.references.tiny import tiny_model
from training.arguments import OptimizationArguments
from training.optimization import build_optimizer


def test_towers_and_heads_have_their_rates_and_vectors_are_never_decayed():
    model = tiny_model()
    model.text_model.embeddings.requires_grad_(False)
    names = {id(weight): name for name, weight in model.named_parameters()}
    optimizer = build_optimizer(
        model, OptimizationArguments(learning_rate=1.0, head_learning_rate=2.0, weight_decay=0.3)
    )
    seen = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            seen.append(name)
            assert group["lr"] == (1.0 if name.startswith(("text_model", "vision_model")) else 2.0)
            assert group["weight_decay"] == (0.0 if weight.ndim == 1 else 0.3)
    assert sorted(seen) == sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    assert "logit_scale.weight" in seen


def test_heads_learn_as_fast_as_towers_unless_told_otherwise():
    optimizer = build_optimizer(tiny_model(), OptimizationArguments(learning_rate=0.5))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
