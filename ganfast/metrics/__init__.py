"""What generated samples are worth, one metric per file. :mod:`ganfast.metrics.fashion` is imported by its own name."""

from ganfast.metrics.frechet import frechet_distance, frechet_distance_from_features
from ganfast.metrics.modes import mode_coverage
from ganfast.metrics.statistics import FeatureStatistics

__all__ = ["FeatureStatistics", "frechet_distance", "frechet_distance_from_features", "mode_coverage"]
