from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics import frechet_distance, frechet_distance_from_features

Array = NDArray[np.float64]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def rotation(size: int, seed: int = 0) -> Array:
    return np.linalg.qr(rng(seed).standard_normal((size, size)))[0]


def covariance(size: int, samples: int, seed: int) -> Array:
    return np.cov(rng(seed).standard_normal((samples, size)) @ rng(seed + 1).standard_normal((size, size)), rowvar=False)


def test_one_dimension_is_the_difference_of_means_and_deviations() -> None:
    distance = frechet_distance(np.array([1.5]), np.array([[4.0]]), np.array([-0.5]), np.array([[0.25]]))
    assert distance == pytest.approx(2.0**2 + (2.0 - 0.5) ** 2, rel=1e-14)


@pytest.mark.parametrize("turn", [False, True])
def test_commuting_covariances_add_up_axis_by_axis(turn: bool) -> None:
    axes = rotation(20) if turn else np.eye(20)
    first, second = rng(1).uniform(0.01, 9.0, 20), rng(2).uniform(0.01, 9.0, 20)
    mu1, mu2 = rng(3).standard_normal((2, 20))
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    distance = frechet_distance(mu1, axes * first @ axes.T, mu2, axes * second @ axes.T)
    assert distance == pytest.approx(expected, rel=1e-11)


def test_two_by_two_that_do_not_commute_have_a_closed_form() -> None:
    # for 2 x 2, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    first, second = np.array([[4.0, 1.0], [1.0, 2.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = first @ second
    expected = np.trace(first + second) - 2 * np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("samples", [400, 10])
def test_identical_gaussians_are_at_distance_zero(samples: int) -> None:
    cov, mu = covariance(60, samples, 5), rng(6).standard_normal(60)
    distance = frechet_distance(mu, cov, mu, cov)
    assert 0.0 <= distance < 1e-11 * np.trace(cov)


def test_a_shift_alone_is_its_squared_length() -> None:
    cov, mu, shift = covariance(30, 100, 1), rng(2).standard_normal(30), rng(3).standard_normal(30)
    assert frechet_distance(mu, cov, mu + shift, cov) == pytest.approx((shift**2).sum(), rel=1e-11)


def test_orthogonal_rank_one_covariances_share_nothing() -> None:
    axes = rotation(12)
    first, second = 5.0 * np.outer(axes[:, 0], axes[:, 0]), 3.0 * np.outer(axes[:, 1], axes[:, 1])
    assert frechet_distance(np.zeros(12), first, np.zeros(12), second) == pytest.approx(8.0, rel=1e-12)
    # and one covariance of zero leaves the other's trace
    assert frechet_distance(np.zeros(12), first, np.zeros(12), np.zeros((12, 12))) == pytest.approx(5.0, rel=1e-12)
    assert frechet_distance(np.zeros(12), np.zeros((12, 12)), np.ones(12), np.zeros((12, 12))) == 12.0


def test_singular_covariances_of_one_range_are_as_their_restrictions() -> None:
    # both live in the same 5 of 40 dimensions, where they are well conditioned
    basis = rotation(40)[:, :5]
    small1, small2 = covariance(5, 30, 1), covariance(5, 30, 8)
    inside = frechet_distance(np.zeros(5), small1, np.zeros(5), small2)
    outside = frechet_distance(np.zeros(40), basis @ small1 @ basis.T, np.zeros(40), basis @ small2 @ basis.T)
    assert outside == pytest.approx(inside, rel=1e-10)


@pytest.mark.parametrize("size", [3, 40, 130])
def test_well_conditioned_pairs_agree_with_schur_square_roots(size: int) -> None:
    cov1, cov2 = covariance(size, 20 * size, 1) + np.eye(size), covariance(size, 20 * size, 11) + np.eye(size)
    mu1, mu2 = rng(4).standard_normal((2, size))
    root = np.real(scipy.linalg.sqrtm(cov1 @ cov2))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected, rel=1e-9)


def test_condition_numbers_of_1e12_agree_with_fifty_digits() -> None:
    size = 12
    spectrum = np.logspace(0, -12, size)
    cov1, cov2 = ((q * spectrum[order] @ q.T + (q * spectrum[order] @ q.T).T) / 2 for q, order in _two_bases(size))
    with mpmath.workdps(50):
        first, second = mpmath.matrix(cov1.tolist()), mpmath.matrix(cov2.tolist())
        values, vectors = mpmath.eigsy(first)
        root = vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values]) * vectors.T
        shared = sum(mpmath.sqrt(max(value, 0)) for value in mpmath.eigsy(root * second * root, eigvals_only=True))
        expected = float(sum(first[i, i] + second[i, i] for i in range(size)) - 2 * shared)
    assert frechet_distance(np.zeros(size), cov1, np.zeros(size), cov2) == pytest.approx(expected, rel=1e-7)


def _two_bases(size: int) -> list[tuple[Array, NDArray[np.int64]]]:
    return [(rotation(size, 1), np.arange(size)), (rotation(size, 2), rng(3).permutation(size))]


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
@pytest.mark.parametrize("size", [30, 200])
def test_pairs_that_do_not_commute_with_a_known_optimal_map(size: int, condition: float) -> None:
    # S2 = T S1 T for T symmetric and positive: the optimal transport map is T, and tr (S1 S2)^(1/2) = tr (S1 T)
    axes, other = rotation(size, 1), rotation(size, 2)
    first = symmetric(axes * np.logspace(0, -np.log10(condition), size) @ axes.T)
    way = symmetric(other * np.linspace(0.5, 2.0, size) @ other.T)
    second = symmetric(way @ first @ way)
    expected = np.trace(first) + np.trace(second) - 2 * np.trace(first @ way)
    # rounding moves an entry of S1 by eps, and a root of an eigenvalue of 1e-12 by 1e6 times as much
    tolerance = 1e-9 if condition < 1e12 else 1e-7
    assert frechet_distance(np.zeros(size), first, np.zeros(size), second) == pytest.approx(expected, rel=tolerance)


def symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_units_scale_out(scale: float) -> None:
    cov1, cov2, mu = covariance(10, 50, 1), covariance(10, 50, 2), rng(3).standard_normal(10)
    distance = frechet_distance(mu, cov1, -mu, cov2)
    scaled = frechet_distance(mu * scale, cov1 * scale**2, -mu * scale, cov2 * scale**2)
    assert scaled == pytest.approx(distance * scale**2, rel=1e-12)


def test_it_is_symmetric() -> None:
    cov1, cov2, mu = covariance(25, 60, 1), covariance(25, 12, 2), rng(3).standard_normal(25)
    there, back = frechet_distance(mu, cov1, -mu, cov2), frechet_distance(-mu, cov2, mu, cov1)
    assert there == pytest.approx(back, rel=1e-11)


def test_features_give_the_distance_of_their_unbiased_statistics() -> None:
    x, y = rng(1).standard_normal((50, 8)), rng(2).standard_normal((31, 8)) * 2 + 1
    expected = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert frechet_distance_from_features(x, y) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_from_features(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-12)


def test_float32_features_far_from_zero_are_centred_in_float64() -> None:
    x = rng(1).standard_normal((200, 4)).astype(np.float32) + np.float32(1000)
    y = rng(2).standard_normal((200, 4)).astype(np.float32) + np.float32(1000)
    expected = frechet_distance_from_features(x.astype(np.float64) - 1000, y.astype(np.float64) - 1000)
    assert frechet_distance_from_features(x, y) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features_are_fine() -> None:
    x, y = rng(1).standard_normal((7, 64)), rng(2).standard_normal((9, 64)) + 0.5
    # the square root of the Gram form, which needs no covariance: the singular values of X Y^T
    a, b = (x - x.mean(0)) / np.sqrt(6), (y - y.mean(0)) / np.sqrt(8)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T)[1].sum()
    assert frechet_distance_from_features(x, y) == pytest.approx(expected, rel=1e-10)


def test_arrays_give_floats_and_so_do_constants() -> None:
    cov, mu = covariance(6, 50, 1), rng(2).standard_normal(6)
    expected = frechet_distance(mu, cov, -mu, cov)
    assert type(expected) is float
    mixed = frechet_distance(torch.from_numpy(mu), torch.from_numpy(cov), -mu, cov)
    assert type(mixed) is float and mixed == expected
    with torch.no_grad():
        assert type(frechet_distance(torch.from_numpy(mu).requires_grad_(), cov, -mu, cov)) is float
    read_only = cov.copy()
    read_only.flags.writeable = False
    assert frechet_distance(mu, read_only, -mu, cov) == expected
    single = [array.astype(np.float32) for array in (mu, cov, -mu, cov)]
    assert frechet_distance(*single) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e6, 1e7, 2e7])
def test_one_feature_that_dwarfs_the_rest_hides_none_of_them(scale: float) -> None:
    size = 64
    one, two = (np.diag([scale**2, *[variance] * (size - 1)]) for variance in (1.0, 4.0))
    # what is left is the rounding of the two traces, of which the distance is a difference
    rounding = 4 * np.finfo(np.float64).eps * scale**2
    assert frechet_distance(np.zeros(size), one, np.zeros(size), two) == pytest.approx(size - 1, rel=0, abs=rounding)
    assert frechet_distance(np.zeros(size), two, np.zeros(size), two) <= rounding


def test_sides_of_float8_and_of_lists() -> None:
    x, y = (rng(1).standard_normal((5, 3)) * 4).round(), rng(2).standard_normal((6, 3))
    expected = frechet_distance_from_features(x, y)
    assert frechet_distance_from_features(torch.from_numpy(x).to(torch.float8_e4m3fn), y) == pytest.approx(expected, rel=1e-13)
    assert frechet_distance_from_features(x.tolist(), y) == expected


# ---- as a loss


def variable(array: Array) -> torch.Tensor:
    return torch.from_numpy(array).requires_grad_()


def from_symmetric(mu1: torch.Tensor, cov1: torch.Tensor, mu2: torch.Tensor, cov2: torch.Tensor) -> torch.Tensor:
    """gradcheck moves one entry of a covariance alone."""
    distance: torch.Tensor = frechet_distance(mu1, (cov1 + cov1.T) / 2, mu2, (cov2 + cov2.T) / 2)
    return distance


def test_gradients_by_statistics() -> None:
    inputs = [variable(rng(1).standard_normal(5)), variable(covariance(5, 20, 1))]
    inputs += [variable(rng(2).standard_normal(5)), variable(covariance(5, 20, 3))]
    distance = from_symmetric(*inputs)
    assert distance.shape == () and distance.dtype == torch.float64 and distance.requires_grad
    assert distance.item() == pytest.approx(frechet_distance(*(t.detach().numpy() for t in inputs)), rel=1e-13)
    assert torch.autograd.gradcheck(from_symmetric, inputs)


# more samples than features, fewer, and one side each
@pytest.mark.parametrize(("n", "m"), [(9, 12), (3, 4), (3, 12), (9, 4)])
def test_gradients_by_features(n: int, m: int) -> None:
    x, y = variable(rng(1).standard_normal((n, 5))), variable(rng(2).standard_normal((m, 5)) + 1)
    assert torch.autograd.gradcheck(frechet_distance_from_features, (x, y))


def test_second_derivatives_where_no_covariance_is_formed() -> None:
    x, y = variable(rng(1).standard_normal((4, 6))), variable(rng(2).standard_normal((3, 6)))
    assert torch.autograd.gradgradcheck(frechet_distance_from_features, (x, y))
    many = variable(rng(1).standard_normal((9, 4)))
    (gradient,) = torch.autograd.grad(frechet_distance_from_features(many, y.detach()[:, :4]), many, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), many)


def test_gradients_at_repeated_and_at_zero_eigenvalues() -> None:
    # of |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2) for S1 = I, S2 = 4 I: I - sqrt(4) I
    mu, one = variable(np.ones(4)), variable(np.eye(4))
    frechet_distance(mu, one, np.zeros(4), 4 * np.eye(4)).backward()
    torch.testing.assert_close(mu.grad, 2 * torch.ones(4).double())
    torch.testing.assert_close(one.grad, -torch.eye(4).double(), rtol=0, atol=1e-13)
    # a singular one: along its range the same, beyond it the trace alone
    flat = variable(np.diag([1.0, 1.0, 0.0, 0.0]))
    frechet_distance(np.zeros(4), flat, np.zeros(4), 4 * np.eye(4)).backward()
    torch.testing.assert_close(flat.grad, torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).double(), rtol=0, atol=1e-13)
    # equal sides are at a minimum
    x = variable(rng(1).standard_normal((20, 4)))
    frechet_distance_from_features(x, x.detach().clone()).backward()
    torch.testing.assert_close(x.grad, torch.zeros(20, 4).double(), rtol=0, atol=1e-13)
    nothing = variable(np.zeros((3, 4)))
    frechet_distance_from_features(nothing, rng(1).standard_normal((5, 4))).backward()
    assert nothing.grad is not None and nothing.grad.isfinite().all()


@pytest.mark.parametrize("least", [0, -5, -8])
def test_gradients_of_features_whose_scales_differ(least: int) -> None:
    # of a side without correlations the derivative is known: its features' deviations s_i, and y's cross terms by S1^-1/2
    scale, size, count = np.logspace(0, least, 12), 12, 40
    basis = np.linalg.qr(np.c_[np.ones(count), rng(1).standard_normal((count, size))])[0][:, 1:] * np.sqrt(count - 1)
    second = covariance(size, 60, 2)
    x = variable(basis * scale)
    samples = np.linalg.cholesky(second) @ np.linalg.qr(np.c_[np.ones(60), rng(3).standard_normal((60, size))])[0][:, 1:].T
    frechet_distance_from_features(x, torch.from_numpy(samples.T * np.sqrt(59))).backward()
    with mpmath.workdps(50):
        root = mpmath.diag(scale.tolist())
        values, vectors = mpmath.eigsy(root * mpmath.matrix(second.tolist()) * root)
        middle = vectors * mpmath.diag([mpmath.sqrt(value) for value in values]) * vectors.T
        way = mpmath.eye(size) - root**-1 * middle * root**-1
        expected = mpmath.matrix((basis * scale).tolist()) * way * (mpmath.mpf(2) / (count - 1))
    assert x.grad is not None
    # an error of eps in the features is 1e8 times as large for those that are 1e8 times smaller
    found, truth = x.grad.numpy(), np.array(expected.tolist(), dtype=np.float64)
    apart = np.linalg.norm(found - truth, axis=0) / np.linalg.norm(truth, axis=0)
    assert apart.max() <= 1e-13 * 100 / scale[-1]


def test_at_equal_sides_gradient_and_curvature_are_not_cut_off() -> None:
    for seed in range(8):  # rounding falls to either side of zero
        y = torch.from_numpy(rng(seed).standard_normal((400, 16)))
        x = (y + 1e-9).requires_grad_()
        distance = frechet_distance_from_features(x, y)
        (gradient,) = torch.autograd.grad(distance, x)
        assert distance.item() >= 0
        torch.testing.assert_close(gradient.sum(dim=0), torch.full((16,), 2e-9).double(), rtol=1e-3, atol=0)
        few = y[:4].clone().requires_grad_()
        (first,) = torch.autograd.grad(frechet_distance_from_features(few, y[:4]), few, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), few)
        # moving all samples alike moves the mean alone
        torch.testing.assert_close(second, torch.full((4, 16), 2 / 4).double())


def test_dual_numbers_and_transforms_lose_nothing() -> None:
    x, y, way = (torch.from_numpy(rng(seed).standard_normal((4, 6))) for seed in range(3))
    step = 1e-6
    slope = frechet_distance_from_features(x + step * way, y) - frechet_distance_from_features(x - step * way, y)
    with torch.autograd.forward_ad.dual_level():
        distance = frechet_distance_from_features(torch.autograd.forward_ad.make_dual(x, way), y)
        tangent = torch.autograd.forward_ad.unpack_dual(distance).tangent
        assert tangent.item() == pytest.approx(slope / (2 * step), rel=1e-6)
        with pytest.raises(NotImplementedError, match=r"none within torch\.func"):
            frechet_distance_from_features(torch.autograd.forward_ad.make_dual(x.T.clone(), way.T), y.T.clone())
    _, tangent = torch.func.jvp(lambda t: frechet_distance_from_features(t, y), (x,), (way,))
    assert tangent.item() == pytest.approx(slope / (2 * step), rel=1e-6)


@pytest.mark.parametrize("count", [40, 6])
def test_descending_it_makes_features_alike(count: int) -> None:
    real = torch.from_numpy(rng(1).standard_normal((50, 8)) @ rng(2).standard_normal((8, 8)) + 1)
    fake = variable(rng(3).standard_normal((count, 8)))
    before = frechet_distance_from_features(fake.detach(), real)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(frechet_distance_from_features(fake, real), fake)
        with torch.no_grad():
            fake -= 0.2 * count * gradient
    # five directions of eight are all that six samples can have; the others' variance stays
    centred = real - real.mean(dim=0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred / 49)
    least = spectrum[: max(0, 8 - (count - 1))].sum().item()
    assert frechet_distance_from_features(fake.detach(), real) <= least + 1e-3 * before


def test_float32_features_get_float32_gradients() -> None:
    x = torch.randn(12, 5, requires_grad=True)
    frechet_distance_from_features(x, torch.randn(9, 5)).backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_refusals_name_the_side_and_the_cause() -> None:
    mu, cov = np.zeros(3), np.eye(3)
    bad = cov.copy()
    bad[1, 1] = np.nan
    with pytest.raises(InvalidValue, match="cov2 holds 1 values that are NaN or Inf, of 9"):
        frechet_distance(mu, cov, mu, bad)
    with pytest.raises(InvalidValue, match="mu1 holds 3 values that are NaN or Inf"):
        frechet_distance(mu + np.inf, cov, mu, cov)
    with pytest.raises(InvalidValue, match=r"mu1 \(D,\) and cov1 \(D, D\), got mu1 \(3,\) and cov1 \(2, 2\)"):
        frechet_distance(mu, np.eye(2), mu, cov)
    with pytest.raises(InvalidValue, match=r"got mu2 \(1, 3\) and cov2 \(3, 3\)"):
        frechet_distance(mu, cov, mu[None], cov)
    with pytest.raises(InvalidValue, match="as many features on both sides, got 3 in mu1 and 2 in mu2"):
        frechet_distance(mu, cov, np.zeros(2), np.eye(2))
    with pytest.raises(InvalidValue, match=r"cov1 is not symmetric: .* up to 0\.5"):
        frechet_distance(mu, cov + np.triu(np.full((3, 3), 0.5), 1), mu, cov)
    with pytest.raises(InvalidValue, match="cov2 is no covariance: it has the eigenvalue -1"):
        frechet_distance(mu, cov, mu, np.diag([2.0, 1.0, -1.0]))
    features = rng(1).standard_normal((5, 3))
    with pytest.raises(InvalidValue, match="y: a covariance needs at least two samples, got 1"):
        frechet_distance_from_features(features, features[:1])
    with pytest.raises(InvalidValue, match="x holds 1 values that are NaN or Inf, of 15"):
        frechet_distance_from_features(np.where(np.arange(15).reshape(5, 3) == 4, np.nan, features), features)
    with pytest.raises(InvalidValue, match=r"x: expected features \(N, D\), got \(5,\)"):
        frechet_distance_from_features(features[:, 0], features)
    with pytest.raises(InvalidValue, match="got 3 in x and 2 in y"):
        frechet_distance_from_features(features, features[:, :2])


def test_numbers_too_large_to_square_are_refused_by_name() -> None:
    x, y = rng(1).standard_normal((5, 8)), rng(2).standard_normal((50, 8))
    for huge in (x * 1e200, y * 1e200, np.full((5, 8), 1.7e308), torch.from_numpy(x * 1e200).requires_grad_()):
        with pytest.raises(InvalidValue, match="y holds numbers too large to square"):
            frechet_distance_from_features(x, huge)
    mu, cov = np.zeros(4), np.eye(4)
    with pytest.raises(InvalidValue, match="cov2 holds numbers too large to square"):
        frechet_distance(mu, cov, mu, torch.from_numpy(cov * 1e308).requires_grad_())
    with pytest.raises(InvalidValue, match="mu1 holds numbers too large to square"):
        frechet_distance(mu + 1e200, cov, mu, cov)
    largest = frechet_distance_from_features(x * 1e140, y * 1e140)
    assert largest == pytest.approx(frechet_distance_from_features(x, y) * 1e280, rel=1e-12)


def test_what_is_no_real_number_is_refused_by_name() -> None:
    x, mu, cov = rng(1).standard_normal((5, 3)), np.zeros(3), np.eye(3)
    bad: list[object] = [x + 1j, x.astype(">f8"), x.astype(np.longdouble), x.astype(object), x.astype("M8[s]"), None, "x"]
    for wrong in [*bad, torch.from_numpy(x + 1j), torch.from_numpy(x).to_sparse(), np.zeros((5, 3), dtype=[("a", "f8")])]:
        with pytest.raises(InvalidType, match=r"^y: expected"):
            frechet_distance_from_features(x, wrong)  # type: ignore[call-overload]
    with pytest.raises(InvalidType, match=r"^cov1: expected"):
        frechet_distance(mu, cov + 0j, mu, cov)
    with pytest.raises(InvalidType, match=r"^mu2: expected"):
        frechet_distance(mu, cov, mu + 0j, cov)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(InvalidType, match="cov2: expected float32 or float64, got torch"):
            frechet_distance(mu, cov, mu, torch.eye(3).to(dtype))


def test_small_features_are_held_to_their_own_scale() -> None:
    mu = np.zeros(3)
    for bad in (np.diag([1e6, 5.0, -5.0]), np.array([[1e6, 0, 0], [0, 1, 5], [0, 5, 1.0]])):
        with pytest.raises(InvalidValue, match=r"cov2 is no covariance: it has the eigenvalue -[45]"):
            frechet_distance(mu, np.eye(3), mu, bad)
    with pytest.raises(InvalidValue, match=r"cov2 is not symmetric: .* up to 10"):
        frechet_distance(mu, np.eye(3), mu, np.array([[1e6, 0, 0], [0, 10, 5], [0, -5, 10.0]]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_rounding_of_float32_is_forgiven(kind: type) -> None:
    """To a covariance that was kept in it on its way too."""
    rows = rng(1).standard_normal((10, 40)).astype(np.float32)
    singular, mu = (rows.T @ rows).astype(kind), np.zeros(40)
    assert frechet_distance(mu, singular, mu, singular) == pytest.approx(0, abs=1e-4 * float(np.trace(singular)))
    lopsided = (np.eye(3) + np.triu(np.full((3, 3), 1e-6), 1)).astype(kind)
    frechet_distance(np.zeros(3), lopsided, np.zeros(3), np.eye(3))
    with pytest.raises(InvalidValue, match="cov1 is not symmetric"):
        frechet_distance(np.zeros(3), lopsided + np.triu(np.full((3, 3), 1e-3), 1).astype(kind), np.zeros(3), np.eye(3))
