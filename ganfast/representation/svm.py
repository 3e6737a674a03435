r"""A linear L2-SVM, each class against the rest (Fan et al. 2008, "LIBLINEAR", equation 3; Tang 2013, arXiv:1306.0239).

    min_w  |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2,    y_i = 1 in the class, -1 outside of it

for each class, x_i with a one behind its features, so that the last weight is the intercept and is kept small like the others:
LIBLINEAR's problem, and that of scikit-learn's ``LinearSVC``. The squared hinge has a continuous gradient, so all classes go
through one L-BFGS together, on a CPU or a GPU: a few hundred times two products of the features with one matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GRADIENT = 1e-5  # of the objective over C N; the objective is then within 1e-5 of its minimum, relative
_ITERATIONS = 2000
_HISTORY = 20


def fit(features: Tensor, labels: Tensor, classes: int, cost: float, start: Tensor | None = None) -> Tensor:
    """Weights (K, D + 1) for features (N, D), float32 or float64, of ``labels`` (N,) in 0 .. K - 1; ``cost`` is C.

    ``start`` is where to begin, such as the weights for another cost. The same input gives the same weights.
    """
    signs = _signs(features, labels, classes)
    weights = features.new_zeros(classes, features.shape[1] + 1) if start is None else start.clone()
    slope = torch.empty_like(weights)
    weights.grad = slope
    shrink, share = 1 / (cost * len(labels)), 1 / len(labels)

    def closure() -> Tensor:
        """The objective over C N, which is of one order for every C and N, and its gradient."""
        slack = _slack(features, signs, weights)
        value = _sum_of_squares(weights) * (shrink / 2) + _sum_of_squares(slack) * share
        pull = slack.mul_(signs).mul_(-2 * share)
        # classes first in both products: the other way round a CPU takes five times as long over so few columns
        torch.mm(pull, features, out=slope[:, :-1])
        slope[:, -1] = pull.sum(dim=1)
        slope.add_(weights, alpha=shrink)
        return value

    with torch.no_grad():
        torch.optim.LBFGS(
            [weights],
            max_iter=_ITERATIONS,
            max_eval=2 * _ITERATIONS,
            history_size=_HISTORY,
            tolerance_grad=_GRADIENT,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        ).step(closure)
    return weights.detach()


def scores(features: Tensor, weights: Tensor) -> Tensor:
    """w.x of every class and sample, (K, N)."""
    return torch.addmm(weights[:, -1:], weights[:, :-1], features.T)


def accuracy(features: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The share of samples whose highest score is their own class's."""
    return (scores(features, weights).argmax(dim=0) == labels).double().mean().item()


def objective(features: Tensor, labels: Tensor, weights: Tensor, cost: float) -> float:
    """What :func:`fit` minimises, summed over the classes."""
    slack = _slack(features, _signs(features, labels, len(weights)), weights)
    return float(_sum_of_squares(weights) / 2 + cost * _sum_of_squares(slack))


def _signs(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """y (K, N)."""
    known = torch.arange(classes, device=labels.device).unsqueeze(1)
    return (labels == known).to(features.dtype).mul_(2).sub_(1)


def _slack(features: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    return scores(features, weights).mul_(signs).neg_().add_(1).clamp_(min=0)


def _sum_of_squares(values: Tensor) -> Tensor:
    return values.square().sum(dtype=torch.float64)
