"""The one list of objectives, `OBJECTIVES`, and the one way to call them, `compute_objective`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .contrast_mxmclr import ObjectiveOutput, Weight
from .folds_mxmclr import Observations, find_instances
from .mfh_mxmclr import mfh
from .multiview_objectives_mxmclr import mv_dhel, mv_infonce, ntxent, pvc
from .pmrl_mxmclr import pmrl
from .siglip_mxmclr import siglip
from .softmax_objectives_mxmclr import clip, milnce, one_to_k, stablerep, supcon, unicl
from .tcl_mxmclr import tcl
from .terms_mxmclr import TERMS
from .tuple_objectives_mxmclr import gram, symile
from .weighted_objectives_mxmclr import cwcl, hn_nce, soft_clip

Objective = Callable[..., ObjectiveOutput]

OBJECTIVES: dict[str, Objective] = {
    "clip": clip,
    "cwcl": cwcl,
    "gram": gram,
    "hn_nce": hn_nce,
    "mfh": mfh,
    "milnce": milnce,
    "mv_dhel": mv_dhel,
    "mv_infonce": mv_infonce,
    "ntxent": ntxent,
    "one_to_k": one_to_k,
    "pmrl": pmrl,
    "pvc": pvc,
    "siglip": siglip,
    "soft_clip": soft_clip,
    "stablerep": stablerep,
    "supcon": supcon,
    "symile": symile,
    "tcl": tcl,
    "unicl": unicl,
}

# Those that need as many views, and as many captions, of every instance.
EQUAL_FOLDS = frozenset({"gram", "mv_dhel", "mv_infonce", "ntxent", "pvc", "symile"})

# Those that can have keys of earlier steps, since a query of theirs is scored by itself.
REMEMBERING = ("mfh", "unicl")


def compute_objective(
    name: str,
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_group_ids: Tensor,
    text_group_ids: Tensor,
    *,
    scale: Tensor | float | None = None,
    **settings: Any,
) -> ObjectiveOutput:
    """The loss of a batch's observations by the objective of that name.

    Args:
        name: A key of `OBJECTIVES`.
        image_embeds: `(num_images, dim)`, unit norm. Float64 is computed in float64, half types in float32.
        text_embeds: `(num_texts, dim)`, unit norm.
        image_group_ids: `(num_images,)` int64, the instance of each image; only equality means anything.
        text_group_ids: `(num_texts,)` int64.
        scale: Exponentiated logit scale, one over the temperature; None is CLIP's start, 1 / 0.07.
        settings: The objective's settings, see its docstring, and the tensors that it takes beside the observations.

    Raises:
        ValueError: For an unknown objective or setting, or a value outside what the setting allows.

    Example:
        >>> rows, ids = torch.eye(3), torch.tensor([7, 8, 9])
        >>> round(compute_objective("clip", rows, rows, ids, ids, scale=10.0).loss.item(), 6)
        9.1e-05
    """
    inputs = {key: settings.pop(key) for key in input_names(name, settings) & settings.keys()}
    objective = get_objective(name, settings)
    observed = Observations(image_embeds, text_embeds, image_group_ids, text_group_ids)
    if not isinstance(scale, Tensor):
        dtype = torch.promote_types(image_embeds.dtype, torch.float32)
        scale = torch.tensor(1 / 0.07 if scale is None else scale, dtype=dtype, device=image_embeds.device)
    return objective(observed, scale, **inputs)


def get_objective(name: str, settings: Mapping[str, Any] | None = None) -> Objective:
    """The objective of that name with its settings, a function of observations and scale.

    Beside an objective's own settings there is `terms`: by name of `TERMS`, a weight, or a mapping with `weight` and
    the term's settings. The loss is the objective's plus the weighted terms, which are among the components.

    Raises:
        ValueError: For an unknown objective, term or setting, or a value outside what the setting allows.

    Example:
        >>> objective = get_objective("clip", {"terms": {"uniformity": {"weight": 0.1, "t": 4.0}}})
    """
    own = dict(settings or {})
    terms = check_terms(own.pop("terms", {}))
    check_settings(f"`objective_settings` of {name!r}", own, setting_kinds(find("objective", name, OBJECTIVES)))
    objective = partial(OBJECTIVES[name], **own)
    return partial(with_terms, objective, set(_keywords(OBJECTIVES[name])), terms) if terms else objective


def check_remembers(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise a `ValueError` unless the objective with these settings can have keys of earlier steps."""
    if name not in REMEMBERING or (settings or {}).get("score", "observations") != "observations":
        raise ValueError(
            f"A memory needs one of the objectives {list(REMEMBERING)} with `score` 'observations', got {name!r} with "
            f"{dict(settings or {})}; leave it out, in training by `memory_batches: 0`."
        )


def with_terms(
    objective: Objective,
    own_keywords: set[str],
    terms: Mapping[str, Mapping[str, Any]],
    observed: Observations,
    scale: Tensor,
    **keywords: Any,
) -> ObjectiveOutput:
    """An objective's loss plus weighted terms; each gets those of the keywords that it takes.

    A term is no sum over queries: it is found whole, and the share of the queries that are asked for is added. It sees
    what this step observed, not what is remembered.
    """
    loss, components = objective(observed, scale, **{key: keywords[key] for key in own_keywords & keywords.keys()})
    observed = observed.of_this_step()
    if not find_instances(observed.image_group_ids, observed.text_group_ids).in_both.any():
        return ObjectiveOutput(loss, components)
    for name, settings in terms.items():
        taken = {key: keywords[key] for key in tensor_keywords(TERMS[name]) & keywords.keys()}
        options = {key: value for key, value in settings.items() if key != "weight"}
        value = observed.asked_share() * TERMS[name](observed.asking_for_all(), scale, **options, **taken)
        loss, components = loss + settings["weight"] * value, {**components, name: value.detach()}
    return ObjectiveOutput(loss, components)


def check_terms(terms: Any) -> dict[str, dict[str, Any]]:
    """The weight and settings of each term.

    Raises:
        ValueError: Unless `terms` is a mapping, and for what `term_settings` raises it.
    """
    if not isinstance(terms, Mapping):
        raise ValueError(f"`terms` must map names of terms to weights or settings, got {terms!r}.")
    return {name: term_settings(name, value) for name, value in terms.items()}


def term_settings(name: str, value: Any) -> dict[str, Any]:
    """The weight and settings of a term, from a weight alone or a mapping.

    Raises:
        ValueError: For an unknown term or setting, or a value outside what the setting allows.
    """
    kinds = setting_kinds(find("terms", name, TERMS)) | {"weight": Weight}
    settings = {"weight": 1.0} | dict(value) if isinstance(value, Mapping) else {"weight": value}
    check_settings(f"`terms[{name!r}]`", settings, kinds)
    return settings


def find(what: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The entry of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in table:
        raise ValueError(f"`{what}` must be one of {sorted(table)}, got {name!r}.")
    return table[name]


def setting_names(name: str) -> list[str]:
    """The settings that an objective has beside `terms`."""
    return list(setting_kinds(find("objective", name, OBJECTIVES)))


def input_names(name: str, settings: Mapping[str, Any] | None = None) -> set[str]:
    """The tensors that an objective and its terms take beside observations and scale."""
    parts = [find("objective", name, OBJECTIVES)]
    parts += [find("terms", term, TERMS) for term in (settings or {}).get("terms", {})]
    return set().union(*map(tensor_keywords, parts))


def setting_kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each setting of an objective or a term, as its signature has it."""
    return {key: kind for key, kind in _keywords(function).items() if not _takes_tensor(kind)}


def tensor_keywords(function: Callable[..., Any]) -> set[str]:
    """The keywords of an objective or a term that may be tensors."""
    return {key for key, kind in _keywords(function).items() if _takes_tensor(kind)}


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    kinds = get_type_hints(function, include_extras=True)
    return {each.name: kinds[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}


def _takes_tensor(kind: Any) -> bool:
    return kind is Tensor or Tensor in get_args(kind)


def check_settings(where: str, settings: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the setting unless each is known and its type allows the value."""
    for setting, value in settings.items():
        if setting not in kinds:
            raise ValueError(f"{where} must be among {list(kinds)}, got {setting!r}.")
        check_setting(setting, value, kinds[setting])


def check_setting(setting: str, value: object, kind: Any) -> None:
    """Raise a `ValueError` that names the setting unless its type allows the value."""
    expected = [each for each in alternatives(kind) if not fits(value, each)]
    if len(expected) == len(alternatives(kind)):
        raise ValueError(f"`{setting}` must be {' or '.join(map(describe, expected))}, got {value!r}.")


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if type(None) in get_args(kind) else (kind,)


def fits(value: object, kind: Any) -> bool:
    """Whether a setting's type, one of those in contrast_mxmclr, a bool, an int or None, allows a value."""
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return is_number(value) and RANGES[get_args(kind)[1]](value)


def describe(kind: Any) -> str:
    """A setting's type in words."""
    if get_origin(kind) is Literal:
        return f"one of {list(get_args(kind))}"
    return get_args(kind)[1] if get_origin(kind) is Annotated else {type(None): "None", bool: "True or False"}[kind]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a setting's value is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


RANGES: dict[str, Callable[[float], bool]] = {
    "a number in [0, 1]": lambda value: 0 <= value <= 1,
    "a positive number": lambda value: value > 0,
    "a number of at least 0": lambda value: value >= 0,
}
