"""Raw data to rows: the row schema, the builders, and one way to load them all."""

from .loading import load_multifold
from .schema import FEATURES, RowError, split_of

__all__ = ["FEATURES", "RowError", "load_multifold", "split_of"]
