"""The softmax core of the contrastive objectives: queries against keys, with their targets, denominators and means."""

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from .blockwise_mxmclr import BlockwiseDirection, LogitTiles
from .folds_mxmclr import Instances, Observations, find_instances, first_rows, positive_mask
from .queries_mxmclr import Normaliser, Queries, all_queries
from .relation_mxmclr import Relation

# Up to so many logits their matrix is held; above, they are found tile by tile, in memory that grows with the rows.
MATRIX_LOGITS = 2**22
WAYS = ("image_to_text", "text_to_image")

# What a setting may be: `get_objective` reads it off an objective's signature.
Share = Annotated[float, "a number in [0, 1]"]
Positive = Annotated[float, "a positive number"]
Weight = Annotated[float, "a number of at least 0"]
HardForm = Literal["out", "in", "ones", "inverse"]
Denominator = Literal["all", "one_positive", "negatives"]
Score = Literal["observations", "max_sim", "attentive"]


class ObjectiveOutput(NamedTuple):
    """A loss to minimise and the named parts that it is made of: the share in them of the queries that were asked for."""

    loss: Tensor  # (), attached to the graph
    components: dict[str, Tensor]  # each (), detached


def undivided(objective: Callable[..., ObjectiveOutput]) -> Callable[..., ObjectiveOutput]:
    """An objective whose loss is no sum over queries: found whole, of which the asked queries' share is given."""

    @wraps(objective)
    def share_of(observed: Observations, scale: Tensor, **keywords: Any) -> ObjectiveOutput:
        share = observed.asked_share()
        loss, components = objective(observed.asking_for_all(), scale, **keywords)
        return ObjectiveOutput(share * loss, {name: share * part for name, part in components.items()})

    return share_of


class Direction(NamedTuple):
    """Some queries, the keys they are scored against, and the instance that each of them shows.

    What is told of queries is told of those that are answered.
    """

    logits: Tensor  # (num_answered, num_keys), -inf where a key takes no part: the query itself
    positives: Tensor  # (num_answered, num_keys), bool
    queries: Queries
    key_instance: Tensor  # (num_keys,), int64

    @property
    def query_instance(self) -> Tensor:
        """The instance of each query, `(num_answered,)` int64."""
        return self.queries.instance[self.queries.answered]

    @property
    def num_positives(self) -> Tensor:
        """How many positives each query has, `(num_answered,)` int64."""
        return self.queries.num_positives[self.queries.answered]

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in."""
        return self.logits.dtype

    def only(self, kept: Tensor) -> "Direction":
        """The queries where the bool mask `kept`, `(num_queries,)`, is true; every key stays."""
        own = kept[self.queries.answered]
        return self._replace(logits=self.logits[own], positives=self.positives[own], queries=self.queries.only(kept))

    def with_positives(self) -> "Direction":
        """The queries that have a positive."""
        return self.only(self.queries.num_positives > 0)

    def log_sums(self) -> Tensor:
        """Logsumexp over every key, `(num_answered,)`."""
        return self.logits.logsumexp(dim=1)

    def log_sums_of_negatives(self, factor: float = 1.0) -> Tensor:
        """Logsumexp of the logits of other instances' keys, times a factor, `(num_answered,)`.

        It is -inf, without gradient, where no key is of another instance.
        """
        negatives = ~self.positives & self.logits.isfinite()
        alone = ~negatives.any(dim=1)
        # A row of nothing but -inf has no gradient to give: it gets zeros first, and -inf afterwards.
        logits = (factor * self.logits).masked_fill(~negatives, -torch.inf).masked_fill(alone[:, None], 0)
        return logits.logsumexp(dim=1).masked_fill(alone, -torch.inf)

    def positive_scores(self) -> tuple[Tensor, Tensor]:
        """The query of each pair of a query and a positive, in order, and the pair's logit, `(num_pairs,)` each."""
        query, key = self.positives.nonzero(as_tuple=True)
        return query, self.logits[query, key]

    def mean_scores(self, related: Tensor) -> Tensor:
        """The mean logit of each query under its mass on each instance, `(num_answered,)`, see `soft_losses`."""
        fold_sizes = self.key_instance.bincount(minlength=related.shape[1])
        return ((related / fold_sizes.clamp(min=1))[:, self.key_instance] * self.logits).sum(dim=1)


AnyDirection = Direction | BlockwiseDirection


def at_least_float32(observed: Observations) -> Observations:
    """The same observations with half-precision embeddings in float32; float64 stays float64."""
    dtype = torch.promote_types(observed.image_embeds.dtype, torch.float32)
    return observed._replace(image_embeds=observed.image_embeds.to(dtype), text_embeds=observed.text_embeds.to(dtype))


def prepare(observed: Observations, scale: Tensor) -> tuple[Observations, Tensor, Instances]:
    """Observations and scale in the type that is computed in, and the instances."""
    observed = at_least_float32(observed)
    instances = find_instances(observed.image_group_ids, observed.text_group_ids)
    return observed, scale.to(observed.image_embeds.dtype), instances


def shared_seed(observed: Observations) -> int:
    """A seed from the embeddings of the batch, in whichever order, so that all ranks draw alike.

    Rounded, since ranks that share a batch and one process that holds it agree but for the last bits.
    """
    values = observed.image_embeds.detach().double().sum() + observed.text_embeds.detach().double().sum()
    return hash(round(values.item(), 1)) % 2**63


def has_pair(observed: Observations, instances: Instances) -> Tensor:
    """Whether an observation of this step has a positive of the other modality, `()` bool."""
    return instances.in_both[torch.cat(asked_instances(observed, instances))].any()


def asked_instances(observed: Observations, instances: Instances) -> tuple[Tensor, Tensor]:
    """The instance of each image and of each text of this step, `(num_images_asked,)` and `(num_texts_asked,)`."""
    return instances.image_index[: observed.num_images_asked], instances.text_index[: observed.num_texts_asked]


def no_pair(observed: Observations, scale: Tensor) -> ObjectiveOutput:
    """A zero loss that still reaches every input, for a batch in which no instance has both modalities."""
    warnings.warn(
        "No instance of this batch has both an image and a text, so its loss is 0; draw more instances a step, or "
        "drop one-sided instances in the builder.",
        stacklevel=3,
    )
    loss = 0 * (observed.image_embeds.sum() + observed.text_embeds.sum() + scale.sum())
    return ObjectiveOutput(loss, {})


def fits_in_matrix(rows: Tensor, columns: Tensor) -> bool:
    """Whether the matrix of all logits is small enough to be held."""
    return len(rows) * len(columns) <= MATRIX_LOGITS


def both_directions(
    observed: Observations, instances: Instances, scale: Tensor, score: Score = "observations"
) -> tuple[AnyDirection, AnyDirection]:
    """Image-to-text and text-to-image, of the queries that have a positive; from the same logits if all are asked for.

    Args:
        observed: Observations of the whole batch.
        instances: Their instances.
        scale: Exponentiated logit scale.
        score: `observations` scores each view with each caption; a key of `SET_SCORES` scores each instance's views
            as one with each caption, so that instances stand in the place of images.
    """
    image_to_text, text_to_image = every_query(observed, instances, scale, score)
    return image_to_text.with_positives(), text_to_image.with_positives()


def every_query(
    observed: Observations, instances: Instances, scale: Tensor, score: Score
) -> tuple[AnyDirection, AnyDirection]:
    """Image-to-text and text-to-image, see `both_directions`, of queries without a positive too."""
    images, texts = observed.image_embeds, observed.text_embeds
    if score != "observations":
        return set_directions(observed, instances, scale, score)
    of_images, of_texts = find_queries(observed, instances)
    remembers = observed.num_remembered is not None
    if remembers or not (of_images.answers_all and of_texts.answers_all):
        return (
            one_direction(images, texts, of_images, instances.text_index, scale),
            one_direction(texts, images, of_texts, instances.image_index, scale),
        )
    if fits_in_matrix(images, texts):
        return matrix_directions(observed, instances, scale)
    tiles = LogitTiles(images, texts, instances.image_index, instances.text_index, scale)
    return tiles.direction(0, of_images), tiles.direction(1, of_texts)


def find_queries(observed: Observations, instances: Instances) -> tuple[Queries, Queries]:
    """All images and all texts of this step as queries to the other side."""
    images, texts = asked_instances(observed, instances)
    return (
        all_queries(images, instances.text_fold_sizes[images], observed.image_queries),
        all_queries(texts, instances.image_fold_sizes[texts], observed.text_queries),
    )


def one_direction(
    rows: Tensor, keys: Tensor, queries: Queries, key_instance: Tensor, scale: Tensor, *, among_keys: bool = False
) -> AnyDirection:
    """The answered rows against all keys, each with logits of its own.

    Args:
        rows: `(num_queries, dim)`.
        keys: `(num_keys, dim)`.
        queries: The rows as queries.
        key_instance: `(num_keys,)` int64.
        scale: Exponentiated logit scale.
        among_keys: Whether the rows are the keys, of which none scores itself.
    """
    answered = queries.answered
    own, own_instance = rows[answered], queries.instance[answered]
    if not fits_in_matrix(rows, keys):  # judged by all rows, so that all who share a loss find it alike
        places = answered if among_keys else None
        tiles = LogitTiles(own, keys, own_instance, key_instance, scale, one_way=True, places=places)
        return tiles.direction(0, queries)
    logits, positives = scale * own @ keys.T, own_instance[:, None] == key_instance
    if among_keys:
        itself = answered[:, None] == torch.arange(len(keys), device=keys.device)
        logits, positives = logits.masked_fill(itself, -torch.inf), positives & ~itself
    return Direction(logits, positives, queries, key_instance)


def matrix_directions(observed: Observations, instances: Instances, scale: Tensor) -> tuple[Direction, Direction]:
    """Image-to-text and text-to-image from one matrix of logits, of every query."""
    logits, of_queries = scale * observed.image_embeds @ observed.text_embeds.T, find_queries(observed, instances)
    positives = positive_mask(instances.image_index, instances.text_index)
    image_to_text = Direction(logits, positives, of_queries[0], instances.text_index)
    return image_to_text, Direction(logits.T, positives.T, of_queries[1], instances.image_index)


def set_directions(
    observed: Observations, instances: Instances, scale: Tensor, score: Score
) -> tuple[Direction, Direction]:
    """Image-to-text and text-to-image of each instance's views as one; who is asked for the first of them is for all."""
    images, texts, index = observed.image_embeds, observed.text_embeds, instances.image_index
    has_views = instances.image_fold_sizes > 0
    sets = has_views.nonzero().squeeze(1)
    asked = observed.image_queries
    if asked is not None:
        asked = asked[first_rows(index, len(has_views))[sets]]
    of_sets = all_queries(sets, instances.text_fold_sizes[sets], asked)
    of_texts = all_queries(instances.text_index, has_views[instances.text_index].long(), observed.text_queries)
    positives = sets[:, None] == instances.text_index

    def score_all(views: Tensor, captions: Tensor, view_instance: Tensor) -> Tensor:
        return SET_SCORES[score](scale * views @ captions.T, view_instance, len(has_views))[sets]

    if of_sets.answers_all and of_texts.answers_all:
        logits = score_all(images, texts, index)
        to_texts, to_sets = logits, logits.T
    else:
        wanted = torch.zeros_like(has_views).index_fill(0, sets[of_sets.answered], True)[index]
        to_texts = score_all(images[wanted], texts, index[wanted])[of_sets.answered]
        to_sets = score_all(images, texts[of_texts.answered], index).T
    return (
        Direction(to_texts, positives[of_sets.answered], of_sets, instances.text_index),
        Direction(to_sets, positives.T[of_texts.answered], of_texts, sets),
    )


def within(rows: Tensor, instance: Tensor, scale: Tensor, asked: Tensor | None = None) -> AnyDirection:
    """Rows against all others, those of the bool mask `asked` or all; `(num_rows, dim)` of unit norm, with instances."""
    queries = all_queries(instance, instance.bincount()[instance] - 1, asked)
    if asked is None and not fits_in_matrix(rows, rows):
        return LogitTiles(rows, None, instance, instance, scale).direction(0, queries)
    return one_direction(rows, rows, queries, instance, scale, among_keys=True)


def best_view(logits: Tensor, image_instance: Tensor, num_instances: int) -> Tensor:
    """Logit of each instance's best view with each text, `(num_instances, num_texts)`; -inf without views.

    The late interaction of CLaMR (https://huggingface.co/papers/2506.06144), views in the place of tokens.
    """
    lowest = logits.new_full((num_instances, logits.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, image_instance[:, None].expand_as(logits), logits, "amax")


def attended_views(logits: Tensor, image_instance: Tensor, num_instances: int) -> Tensor:
    """Mean logit of each instance's views with each text, weighted by the softmax over the views' logits.

    After the attention-weighted scores of CoLLAP (https://huggingface.co/papers/2410.02271); 0 without views.
    """
    columns = image_instance[:, None].expand_as(logits)
    highest = best_view(logits.detach(), image_instance, num_instances)
    weights = (logits - highest[image_instance]).exp()
    zeros = logits.new_zeros(num_instances, logits.shape[1])
    totals = zeros.scatter_add(0, columns, weights)
    return zeros.scatter_add(0, columns, weights / totals[image_instance] * logits)


SET_SCORES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"max_sim": best_view, "attentive": attended_views}


def hard_losses(direction: AnyDirection, form: HardForm = "out", denominator: Denominator = "all") -> Tensor:
    """The loss of each query against its positives, `(num_queries,)`; each query must have one.

    Args:
        direction: The queries.
        form: A key of `HARD_FORMS`: how a query's positives make one loss.
        denominator: A key of `DENOMINATORS`: what a positive competes with.
    """
    query, log_likelihood = log_likelihoods(direction, denominator)
    return HARD_FORMS[form](log_likelihood, query, direction.num_positives)


def log_likelihoods(direction: AnyDirection, denominator: Denominator = "all") -> tuple[Tensor, Tensor]:
    """The query of each pair of a query and a positive, in order, and the pair's log-likelihood, `(num_pairs,)` each."""
    sums = direction.log_sums() if denominator == "all" else direction.log_sums_of_negatives()
    query, scores = direction.positive_scores()
    return query, scores - DENOMINATORS[denominator](scores, sums[query])


def hard_out(log_likelihood: Tensor, query: Tensor, num_positives: Tensor) -> Tensor:
    """Minus the mean log-likelihood of a query's positives, `(num_queries,)`; SupCon's L_out, Eq. 2."""
    return hard_ones(log_likelihood, query, num_positives) / num_positives


def hard_in(log_likelihood: Tensor, query: Tensor, num_positives: Tensor) -> Tensor:
    """Minus the log of the mean likelihood of a query's positives, `(num_queries,)`; SupCon's L_in, Eq. 3."""
    return num_positives.to(log_likelihood).log() - logsumexp_by(log_likelihood, query, len(num_positives))


def hard_inverse(log_likelihood: Tensor, query: Tensor, num_positives: Tensor) -> Tensor:
    """The log of the mean inverse likelihood of a query's positives, `(num_queries,)`: `pvc`'s arithmetic mean."""
    return logsumexp_by(-log_likelihood, query, len(num_positives)) - num_positives.to(log_likelihood).log()


def hard_ones(log_likelihood: Tensor, query: Tensor, num_positives: Tensor) -> Tensor:
    """Minus the summed log-likelihood of a query's positives, `(num_queries,)`; 1-to-K without its division."""
    return -sum_by(log_likelihood, query, len(num_positives))


def over_all(scores: Tensor, log_sums: Tensor) -> Tensor:
    """Log-sum over every key, for each positive's score, `(num_pairs,)`."""
    return log_sums


def over_one_positive(scores: Tensor, log_sums: Tensor) -> Tensor:
    """Log-sum over that positive and the negatives: an instance's other positives are masked, as MuCo has it."""
    return torch.logaddexp(scores, log_sums)


def over_negatives(scores: Tensor, log_sums: Tensor) -> Tensor:
    """Log-sum over the negatives alone, so that the loss has no lower bound; a query without any costs nothing."""
    return torch.where(log_sums.isinf(), scores, log_sums)


HARD_FORMS = {"out": hard_out, "in": hard_in, "ones": hard_ones, "inverse": hard_inverse}
DENOMINATORS = {"all": over_all, "one_positive": over_one_positive, "negatives": over_negatives}


def hard_floors(direction: AnyDirection, form: HardForm = "out", denominator: Denominator = "all") -> Tensor:
    """The least that each of `hard_losses` can be, `(num_queries,)`: the entropy of its targets.

    Where a positive competes with negatives alone there is none.
    """
    count = direction.num_positives.to(direction.dtype)
    if denominator != "all":
        return torch.zeros_like(count) if denominator == "one_positive" else torch.full_like(count, -torch.inf)
    return count * count.log() if form == "ones" else count.log()


def soft_losses(direction: AnyDirection, related: Tensor) -> Tensor:
    """Cross-entropy of each query against a mass on each instance, spread evenly over the instance's keys.

    Args:
        direction: The queries.
        related: `(num_queries, num_instances)`, the mass; zero on instances without keys.
    """
    return related.sum(dim=1) * direction.log_sums() - direction.mean_scores(related)


def soft_floors(direction: AnyDirection, related: Tensor) -> Tensor:
    """The least that each of `soft_losses` can be, `(num_queries,)`: the entropy where its masses sum to one."""
    fold_sizes = direction.key_instance.bincount(minlength=related.shape[1]).clamp(min=1).to(related)
    tiny = torch.finfo(related.dtype).tiny
    shares = related / fold_sizes / related.sum(dim=1, keepdim=True).clamp(min=tiny)
    return -(related * shares.clamp(min=tiny).log()).sum(dim=1)


def soft_parts(
    direction: AnyDirection, relation: Relation, place: Tensor, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """The `soft_losses` and the `soft_floors` of queries whose masses a relation gives, `(num_queries,)` each.

    Args:
        direction: The queries.
        relation: How related its rows are to the instances.
        place: `(num_queries,)` int64, the row of each query, or its column where transposed.
        transposed: Whether a query's masses are a column.
    """
    # A column is of all rows' softmaxes, so that nothing is saved where few are asked for.
    if not (transposed or direction.queries.answers_all):
        relation, place = relation.of(place)
    if isinstance(direction, BlockwiseDirection):
        return relation.soft_parts(direction, place, transposed)
    related = relation.masses(place, transposed)
    return soft_losses(direction, related), soft_floors(direction, related.detach())


def one_to_one(observed: Observations, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's two losses, image-to-text and text-to-image, of as many images as texts in the same order, `()` each."""
    instances = find_instances(observed.image_group_ids, observed.text_group_ids)
    ways = both_directions(observed, instances, scale)
    image_to_text, text_to_image = (mean_of_queries(hard_losses(way), way) for way in ways)
    return image_to_text, text_to_image


def in_pairs(images: Tensor, texts: Tensor) -> Observations:
    """As many images as texts, each pair of them an instance of its own."""
    places = torch.arange(len(images), device=images.device)
    return Observations(images, texts, places, places)


def by_way(losses: Sequence[Tensor]) -> dict[str, Tensor]:
    """The losses of both directions as components."""
    return {way: loss.detach() for way, loss in zip(WAYS, losses, strict=True)}


def mean_of_queries(losses: Tensor, direction: AnyDirection, normaliser: Normaliser = "observations") -> Tensor:
    """The answered queries' share in the mean of all queries' losses, `()`.

    Args:
        losses: `(num_answered,)`.
        direction: The queries.
        normaliser: What counts equally, a key of `QUERY_WEIGHTS`.
    """
    weights = direction.queries.weights(normaliser, losses.dtype)
    # With a memory, one side's observations of a step may have positives while the other's have none.
    return (losses * weights[direction.queries.answered]).sum() / weights.sum().clamp(
        min=torch.finfo(losses.dtype).tiny
    )


def sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the values of each index, `(size,)`."""
    return values.new_zeros(size).index_add(0, index, values)


def logsumexp_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Logsumexp of the values of each index, `(size,)`; every index must have one."""
    highest = values.detach().new_full((size,), -torch.inf).scatter_reduce(0, index, values.detach(), "amax")
    return sum_by((values - highest[index]).exp(), index, size).log() + highest
