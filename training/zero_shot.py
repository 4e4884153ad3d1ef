"""Class names in templates as embeddings, so that views and instances can search them: classification by name."""

from collections.abc import Sequence

import torch

from modeling_mxmclr import MXMCLRModel, MXMCLRProcessor
from modeling_mxmclr.folds_mxmclr import instance_embeddings
from training.searches import ClassEmbeddings, Embeddings

PROMPTS_PER_BATCH = 256


def category_names(embeddings: Embeddings) -> list[str]:
    """The categories of a data set, in alphabetical order.

    Raises:
        ValueError: If it has none.
    """
    names = sorted(set(embeddings.categories.values()))
    if not names:
        raise ValueError("No instance has a `category`; pass the names of the classes, or add the column.")
    return names


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """The prompts of each class.

    Example:
        >>> class_prompts(["chair", "table"], ["{}", "a picture of a {}"])
        [['chair', 'a picture of a chair'], ['table', 'a picture of a table']]
    """
    return [[template.replace("{}", name) for template in templates] for name in names]


@torch.no_grad()
def embed_classes(
    model: MXMCLRModel, processor: MXMCLRProcessor, names: Sequence[str], templates: Sequence[str]
) -> ClassEmbeddings:
    """Each class as the unit-norm mean over templates of its prompts' embeddings, on the CPU.

    Raises:
        ValueError: If names are missing, empty or equal, or there is no template.
    """
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"`names` must be different texts, at least one, got {list(names)}.")
    if not templates:
        raise ValueError("`templates` must hold at least one text with '{}' for the name.")
    was_training = model.training
    model.eval()
    prompts = [prompt for fold in class_prompts(names, templates) for prompt in fold]
    batches = [prompts[start : start + PROMPTS_PER_BATCH] for start in range(0, len(prompts), PROMPTS_PER_BATCH)]
    embeds = torch.cat([_embed_prompts(model, processor, batch) for batch in batches])
    model.train(was_training)
    owners = torch.arange(len(names)).repeat_interleave(len(templates))
    return ClassEmbeddings(list(names), instance_embeddings(embeds, owners))


def _embed_prompts(model: MXMCLRModel, processor: MXMCLRProcessor, prompts: list[str]) -> torch.Tensor:
    batch = processor(text=[prompts])
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "text_group_ids"}
    return model.get_text_features(**inputs).float().cpu()
