"""Each loss against its paper's formula in float64 probabilities, and at the extremes where a naive form overflows."""

from __future__ import annotations

import math

import pytest
import torch

from ganfast import losses

REAL = torch.tensor([-2.0, 0.3, 1.7, 4.0], dtype=torch.float64)
FAKE = torch.tensor([0.9, -1.2, 0.0, 2.5], dtype=torch.float64)
P_REAL, P_FAKE = (1 / (1 + (-x).exp()) for x in (REAL, FAKE))

FORMULAS = {
    "minimax_critic": (lambda: losses.minimax_critic(REAL, FAKE), -(P_REAL.log().mean() + (1 - P_FAKE).log().mean())),
    "minimax_generator": (lambda: losses.minimax_generator(FAKE), (1 - P_FAKE).log().mean()),
    "non_saturating": (lambda: losses.non_saturating_generator(FAKE), -P_FAKE.log().mean()),
    "wasserstein_critic": (lambda: losses.wasserstein_critic(REAL, FAKE), (0.9 - 1.2 + 2.5) / 4 - (-2 + 0.3 + 1.7 + 4) / 4),
    "wasserstein_generator": (lambda: losses.wasserstein_generator(FAKE), -(0.9 - 1.2 + 2.5) / 4),
    "hinge_critic": (lambda: losses.hinge_critic(REAL, FAKE), (3 + 0.7) / 4 + (1.9 + 0 + 1 + 3.5) / 4),
    "hinge_generator": (lambda: losses.hinge_generator(FAKE), -(0.9 - 1.2 + 2.5) / 4),
    "least_squares_critic": (
        lambda: losses.least_squares_critic(REAL, FAKE),
        ((9 + 0.49 + 0.49 + 9) / 4 + (0.81 + 1.44 + 6.25) / 4) / 2,
    ),
    "least_squares_generator": (lambda: losses.least_squares_generator(FAKE), (0.01 + 4.84 + 1 + 2.25) / 4),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_is_the_papers_formula(name: str) -> None:
    ours, truth = FORMULAS[name]
    assert float(ours()) == pytest.approx(float(truth), rel=1e-12)


def test_sure_critics_give_finite_losses_and_the_gradients_the_paper_speaks_of() -> None:
    sure = torch.full((3,), -200.0, requires_grad=True)  # D(G(z)) = exp(-200): log of it overflows as a float32 probability
    minimax = torch.autograd.grad(losses.minimax_generator(sure), sure)[0]
    heuristic = torch.autograd.grad(losses.non_saturating_generator(sure), sure)[0]
    assert losses.non_saturating_generator(sure).item() == pytest.approx(200.0)
    assert minimax.abs().max() < 1e-30  # the original loss gives a losing generator nothing
    assert heuristic.tolist() == pytest.approx([-1 / 3] * 3)


def test_two_outputs_are_cross_entropy_over_real_and_fake() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 7, 2, generator=generator, dtype=torch.float64)
    ours = losses.minimax_critic(losses.log_odds(real), losses.log_odds(fake))
    ones, zeros = torch.ones(7, dtype=torch.long), torch.zeros(7, dtype=torch.long)
    truth = torch.nn.functional.cross_entropy(real, ones) + torch.nn.functional.cross_entropy(fake, zeros)
    assert float(ours) == pytest.approx(float(truth), rel=1e-12)


def test_gaussian_code_is_the_normal_density() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, code = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    density = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(code).sum(1).mean()
    constant = math.log(2 * math.pi)  # half of it for each of two codes
    assert float(losses.gaussian_code(mean, log_variance, code)) == pytest.approx(-float(density) - constant, rel=1e-12)
