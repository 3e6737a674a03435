from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.path_length import perceptual_path_length, squared_distance

SQUARED = squared_distance(lambda images: images)


def normal(width: int, dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, width, dtype=dtype)


def orthogonal(n: int) -> Tensor:
    """The first half of the vectors along one axis, the second along another, all of length 3."""
    return 3 * torch.eye(4, dtype=torch.float64)[[0, 2]].repeat_interleave(n // 2, dim=0)


def test_a_linear_generator_along_straight_lines_is_its_matrix() -> None:
    # G z = A z moves by A (z2 - z1) over the path, of which the squared length has the mean 2 |A|^2
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sampling in ("full", "end"):
        found = perceptual_path_length(
            lambda z: z @ matrix.T, normal(4), SQUARED, n=20_000, batch=4096, space="w", sampling=sampling, trim=0
        )
        truth = 2 * matrix.square().sum().item()
        assert abs(found.mean - truth) < 4 * found.deviation / math.sqrt(20_000)
        assert found.deviation < truth


def test_a_quarter_of_a_circle_is_as_long_as_it_is() -> None:
    # at every t the speed is the radius times a right angle; a chord of angle a is shorter than its arc by a^2 / 24
    for sampling in ("full", "end"):
        found = perceptual_path_length(lambda z: 2 * z, orthogonal, SQUARED, n=10, sampling=sampling)
        assert found.lengths.tolist() == pytest.approx([(2 * 3 * math.pi / 2) ** 2] * 10, rel=1e-7)
    straight = perceptual_path_length(lambda z: 2 * z, orthogonal, SQUARED, n=10, space="w")
    assert straight.lengths.tolist() == pytest.approx([4 * (9 + 9)] * 10, rel=1e-7)


def test_full_and_end_differ_where_the_generator_is_curved() -> None:
    # G z = z^2 in one dimension, from z1 to z2 straight: the speed at t is 2 z(t) (z2 - z1)
    ends: list[Tensor] = []

    def latents(n: int) -> Tensor:
        ends.append(torch.rand(n, 1, dtype=torch.float64) + 1)
        return ends[-1]

    found = perceptual_path_length(torch.square, latents, SQUARED, n=50, space="w", sampling="end", epsilon=1e-6)
    one, other = ends[0].chunk(2)
    torch.testing.assert_close(found.lengths, (2 * one * (other - one)).square()[:, 0], rtol=1e-4, atol=1e-6)
    ends.clear()
    full = perceptual_path_length(torch.square, latents, SQUARED, n=20_000, batch=20_000, space="w", epsilon=1e-6, trim=0)
    one, other = ends[0].chunk(2)
    # the mean over t of z(t)^2 is (z1^2 + z1 z2 + z2^2) / 3
    truth = (4 * (other - one).square() * (one * one + one * other + other * other) / 3).mean().item()
    assert full.mean == pytest.approx(truth, rel=0.02)


def test_the_tails_are_left_out_as_percentiles_say() -> None:
    values = np.random.default_rng(0).permutation(np.arange(201.0))
    place = iter(torch.from_numpy(values).split(50))
    found = perceptual_path_length(lambda z: z, normal(2), lambda x, y: next(place) * 1e-8, n=201, batch=50)
    low, high = np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")
    kept = values[(values >= low) & (values <= high)]
    assert found.lengths.numpy() == pytest.approx(values, rel=1e-12)
    assert len(kept) == 197
    assert found.mean == pytest.approx(kept.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(kept.std(), rel=1e-12)


def test_it_is_torchmetrics_on_the_same_paths() -> None:
    import peers

    assert peers.torchmetrics
    from torchmetrics.functional.image import perceptual_path_length as theirs

    drawn = torch.randn(2, 64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 3 * 4 * 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    class Model(nn.Module):
        halves = iter(drawn)

        def sample(self, n: int) -> Tensor:
            return next(self.halves)[:n]

        def forward(self, z: Tensor) -> Tensor:
            return torch.sigmoid(z @ weight).view(-1, 3, 4, 4) * 255

    class Distance(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return SQUARED(x, y)

    for space, method in (("z", "slerp_any"), ("w", "lerp")):
        Model.halves = iter(drawn)
        options = {"interpolation_method": method, "sim_net": Distance(), "lower_discard": None, "upper_discard": None}
        *_, lengths = theirs(Model(), num_samples=64, batch_size=64, resize=None, **options)
        # theirs gives the distance images in [-1, 1]
        found = perceptual_path_length(
            lambda z: Model()(z) / 127.5 - 1, lambda n: drawn.flatten(0, 1), SQUARED, n=64, space=space, sampling="end"
        )
        torch.testing.assert_close(found.lengths, lengths.double(), rtol=1e-6, atol=0)


def test_the_seed_decides_and_nobody_elses_draws_change() -> None:
    def run(seed: int) -> float:
        return perceptual_path_length(torch.tanh, normal(3), SQUARED, n=60, seed=seed).mean

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = run(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert run(1) == first != run(2)


def test_float32_is_enough_for_a_few_digits() -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    found = perceptual_path_length(lambda z: z @ matrix.T, normal(4, torch.float32), SQUARED, n=2000, space="w", trim=0)
    truth = 2 * matrix.square().sum().item()
    assert found.mean == pytest.approx(truth, abs=4 * found.deviation / math.sqrt(2000))


def test_refusals() -> None:
    def run(generator: Callable[[Tensor], Tensor] = torch.tanh, **options: object) -> None:
        perceptual_path_length(generator, normal(2), SQUARED, n=4, **options)  # type: ignore[arg-type]

    for options, message in [
        ({"space": "x"}, "space 'z' or 'w' and sampling 'full' or 'end', got 'x' and 'full'"),
        ({"sampling": "middle"}, "got 'z' and 'middle'"),
        ({"epsilon": 0}, "epsilon between 0 and 1 and trim from 0 to below 0.5, got 0 and 0.01"),
        ({"trim": 0.5}, "got 0.0001 and 0.5"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"generator": lambda z: z * math.nan}, "4 of 4 lengths are NaN or Inf: the generator's images or the distance are"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            run(**options)
    with pytest.raises(InvalidType, match=r"latents\(8\) to be floats \(8, D\), got torch.float32 \(4, 2\)"):
        perceptual_path_length(torch.tanh, lambda n: torch.zeros(n // 2, 2), SQUARED, n=4)
    with pytest.raises(InvalidType, match=r"two batches of 4 images to be \(4,\), got \(4, 2\)"):
        perceptual_path_length(torch.tanh, normal(2), lambda x, y: x - y, n=4)
    with pytest.raises(InvalidValue, match="opposite"):
        perceptual_path_length(torch.tanh, lambda n: torch.tensor([[1.0], [-1.0]]).repeat(1, 2), SQUARED, n=1)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_batches_decide_nothing(batch: int) -> None:
    whole = perceptual_path_length(torch.tanh, normal(3), SQUARED, n=60)
    parts = perceptual_path_length(torch.tanh, normal(3), SQUARED, n=60, batch=batch)
    torch.testing.assert_close(parts.lengths, whole.lengths, rtol=1e-9, atol=0)
