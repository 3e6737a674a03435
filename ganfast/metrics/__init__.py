"""What generated samples are worth, one metric per file. :mod:`ganfast.metrics.fashion` is imported by its own name."""

from ganfast.metrics.divergences import js_divergence, kl_divergence, sample_divergences
from ganfast.metrics.frechet import frechet_distance, frechet_distance_from_features
from ganfast.metrics.frechet_infinity import frechet_infinity
from ganfast.metrics.gather import all_gather_features
from ganfast.metrics.inception_score import inception_score
from ganfast.metrics.kernel_distance import kernel_distance
from ganfast.metrics.mmd import (
    energy_kernel,
    gaussian_kernel,
    median_distance,
    mmd,
    mmd_test,
    polynomial_kernel,
    rational_quadratic_kernel,
)
from ganfast.metrics.modes import mode_coverage
from ganfast.metrics.ms_ssim import ms_ssim, ms_ssim_diversity
from ganfast.metrics.multiscale_wasserstein import multiscale_sliced_wasserstein
from ganfast.metrics.nearest import nearest_neighbours
from ganfast.metrics.networks import FeatureNetwork, network
from ganfast.metrics.parzen import parzen_log_likelihood
from ganfast.metrics.path_length import perceptual_path_length
from ganfast.metrics.prdc import Manifold, precision_recall_density_coverage
from ganfast.metrics.statistics import FeatureStatistics
from ganfast.metrics.wasserstein import sliced_wasserstein, wasserstein, wasserstein_1d

__all__ = [
    "FeatureNetwork",
    "FeatureStatistics",
    "Manifold",
    "all_gather_features",
    "energy_kernel",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_infinity",
    "gaussian_kernel",
    "inception_score",
    "js_divergence",
    "kernel_distance",
    "kl_divergence",
    "median_distance",
    "mmd",
    "mmd_test",
    "mode_coverage",
    "ms_ssim",
    "ms_ssim_diversity",
    "multiscale_sliced_wasserstein",
    "nearest_neighbours",
    "network",
    "parzen_log_likelihood",
    "perceptual_path_length",
    "polynomial_kernel",
    "precision_recall_density_coverage",
    "rational_quadratic_kernel",
    "sample_divergences",
    "sliced_wasserstein",
    "wasserstein",
    "wasserstein_1d",
]
