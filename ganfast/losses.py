"""Adversarial losses, one paper per function.

Scores are a critic's raw outputs, any shape; every loss is their mean, a scalar. ``real`` and ``fake`` are the scores of real
and of generated samples. Half-precision scores are widened first: a mean difference of scores in bfloat16 has three digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def minimax_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``-E[log D(x)] - E[log(1 - D(G(z)))]`` with ``D = sigmoid(score)`` (Goodfellow et al. 2014, eq. 1)."""
    return F.softplus(-wide(real)).mean() + F.softplus(wide(fake)).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """``E[log(1 - D(G(z)))]`` (Goodfellow et al. 2014, eq. 1); its gradient vanishes where D is sure."""
    return -F.softplus(wide(fake)).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """``-E[log D(G(z))]`` (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-wide(fake)).mean()


def wide(scores: Tensor) -> Tensor:
    """Scores in float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def log_odds(logits: Tensor) -> Tensor:
    """Log odds (N,) of the real class from a two-output softmax critic's logits (N, 2), class 1 real.

    Softmax over two classes is the sigmoid of their difference, so cross entropy over (fake, real) is :func:`minimax_critic`
    of this.
    """
    logits = wide(logits)
    return logits[:, 1] - logits[:, 0]


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``E[f(G(z))] - E[f(x)]``: minus the estimated Wasserstein-1 distance (Arjovsky et al. 2017, eq. 3)."""
    return wide(fake).mean() - wide(real).mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """``-E[f(G(z))]`` (Arjovsky et al. 2017, algorithm 1)."""
    return -wide(fake).mean()


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]`` (Miyato et al. 2018, eq. 16)."""
    return F.relu(1 - wide(real)).mean() + F.relu(1 + wide(fake)).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """``-E[D(G(z))]`` (Miyato et al. 2018, eq. 17)."""
    return -wide(fake).mean()


def least_squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``(E[(D(x) - 1)^2] + E[D(G(z))^2]) / 2`` (Mao et al. 2017, eq. 9)."""
    return ((wide(real) - 1).square().mean() + wide(fake).square().mean()) / 2


def least_squares_generator(fake: Tensor) -> Tensor:
    """``E[(D(G(z)) - 1)^2]``, without the half, as CycleGAN uses it (Zhu et al. 2017, section 4)."""
    return (wide(fake) - 1).square().mean()


def gaussian_code(mean: Tensor, log_variance: Tensor, code: Tensor) -> Tensor:
    """Negative log-likelihood of continuous codes (N, K) under a factored Gaussian, without the constant, per sample.

    The variational bound on mutual information of Chen et al. 2016, eq. 5, for continuous codes.
    """
    return 0.5 * (log_variance + (code - mean).square() * (-log_variance).exp()).sum(1).mean()
