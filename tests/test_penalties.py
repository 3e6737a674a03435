from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ganfast import tangent
from ganfast.errors import InvalidType, InvalidValue
from ganfast.nn import spectral_norm_
from ganfast.ops import library
from ganfast.penalties import gradient_penalty, penalty_plan, r1_penalty, r2_penalty

DOUBLE = torch.float64


def images(seed: int, n: int = 5, channels: int = 2, size: int = 6, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def smooth_critic(channels: int = 2, size: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2, padding=1)
    head = nn.Linear(3 * (size // 2) ** 2, 1)
    return nn.Sequential(first, nn.Softplus(), second, nn.Tanh(), nn.Flatten(), head).double()


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(1) @ weight.flatten()


# closed forms


@pytest.mark.parametrize("target", [0.0, 1.0, 7.5, 30.0])
@pytest.mark.parametrize("kind", ["two-sided", "one-sided"])
def test_a_linear_critic_pays_for_the_length_of_its_weight(kind: str, target: float) -> None:
    weight = torch.randn(2, 6, 6, dtype=DOUBLE, requires_grad=True)
    penalty = gradient_penalty(linear(weight), images(1), images(2), kind=kind, target=target, weight=3.0)
    length = weight.detach().norm().item()
    excess = length - target if kind == "two-sided" else max(0.0, length - target)
    assert penalty.item() == pytest.approx(3.0 * excess**2, rel=1e-12)
    (grad,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(grad, 3.0 * 2 * excess / length * weight.detach(), rtol=1e-10, atol=1e-12)


def test_one_sided_and_two_sided_differ_only_below_the_target() -> None:
    weight = torch.full((2, 6, 6), 0.01, dtype=DOUBLE, requires_grad=True)
    assert gradient_penalty(linear(weight), images(1), images(2), kind="one-sided").item() == 0.0
    assert gradient_penalty(linear(weight), images(1), images(2)).item() > 1.0


def test_the_norm_is_over_all_of_a_samples_dimensions() -> None:
    # the slope is (3, 4) in two channels: length 5 per pixel position, 5 * 6 over 6 x 6 positions. A norm over the channels
    # alone, which is what `grad.norm(2, dim=1)` takes on images, gives 5.
    weight = torch.empty(2, 6, 6, dtype=DOUBLE)
    weight[0], weight[1] = 3.0, 4.0
    penalty = gradient_penalty(linear(weight.requires_grad_()), images(1), images(2), weight=1.0)
    assert penalty.item() == pytest.approx((30.0 - 1.0) ** 2, rel=1e-12)


def test_the_mean_is_over_samples_of_squared_excesses() -> None:
    # slope of |x|^2 / 2 is x: sample i pays (|x_i| - 1)^2
    real, fake, alpha = images(1), images(2), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=DOUBLE)
    mixed = alpha.view(5, 1, 1, 1) * real + (1 - alpha).view(5, 1, 1, 1) * fake
    expected = sum((point.norm().item() - 1) ** 2 for point in mixed) / 5 * 10.0
    half_square = lambda x: 0.5 * x.square().flatten(1).sum(1)  # noqa: E731
    assert gradient_penalty(half_square, real, fake, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)


def test_alpha_one_is_real_and_alpha_zero_is_fake() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    real, fake = images(1), images(2)
    gradient_penalty(critic, real, fake, alpha=torch.ones(5))
    gradient_penalty(critic, real, fake, alpha=torch.zeros(5))
    torch.testing.assert_close(seen[0], real)
    torch.testing.assert_close(seen[1], fake)


def test_each_sample_has_one_alpha_of_its_own_drawn_from_the_generator() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    real, fake = torch.ones(400, 3, 2), torch.zeros(400, 3, 2)
    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(5))
    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(5))
    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(6))
    first, again, other = seen
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    alphas = first[:, 0, 0]
    assert torch.equal(first, alphas[:, None, None].expand_as(first))
    assert len(alphas.unique()) > 390
    assert 0.0 <= alphas.min() < 0.05
    assert 0.95 < alphas.max() <= 1.0
    assert alphas.mean().item() == pytest.approx(0.5, abs=0.06)


def test_the_default_generator_is_used_otherwise() -> None:
    critic, real, fake = smooth_critic(), images(1), images(2)
    torch.manual_seed(3)
    first = gradient_penalty(critic, real, fake)
    torch.manual_seed(3)
    assert torch.equal(first, gradient_penalty(critic, real, fake))


@pytest.mark.parametrize("penalty", [r1_penalty, r2_penalty])
def test_zero_centred_penalties_are_half_the_mean_squared_slope(penalty: Callable[..., Tensor]) -> None:
    points = images(4)
    matrix = torch.randn(72, 72, dtype=DOUBLE)
    symmetric = (matrix + matrix.T).requires_grad_()
    quadratic = lambda x: 0.5 * torch.einsum("ni,ij,nj->n", x.flatten(1), symmetric, x.flatten(1))  # noqa: E731
    value = penalty(quadratic, points, weight=4.0)
    slopes = points.flatten(1) @ symmetric.detach()
    assert value.item() == pytest.approx(4.0 / 2 * slopes.square().sum(1).mean().item(), rel=1e-12)


# the backward pass


@pytest.mark.parametrize("case", ["two-sided", "one-sided", "r1", "r2"])
def test_parameter_gradients_are_those_of_finite_differences(case: str) -> None:
    critic, real, fake = smooth_critic(), images(1), images(2)
    alpha = torch.rand(5, dtype=DOUBLE)

    def penalty() -> Tensor:
        if case == "r1":
            return r1_penalty(critic, real, weight=2.0)
        if case == "r2":
            return r2_penalty(critic, fake, weight=2.0)
        return gradient_penalty(critic, real, fake, kind=case, target=target, alpha=alpha)

    slopes = [r1_penalty(critic, torch.lerp(f, r, a)[None], weight=2.0).sqrt() for r, f, a in zip(real, fake, alpha, strict=True)]
    target = torch.stack(slopes).median().item() * 1.001  # one-sided charges some samples and not others
    penalty().backward()
    direction = {name: torch.randn_like(p) for name, p in critic.named_parameters()}
    expected = sum((direction[name] * p.grad).sum().item() for name, p in critic.named_parameters() if p.grad is not None)
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in critic.named_parameters():
                p += sign * h * direction[name]
        values.append(penalty().item())
        with torch.no_grad():
            for name, p in critic.named_parameters():
                p -= sign * h * direction[name]
    assert abs(expected) > 1e-4
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=1e-6)


def test_every_weight_of_the_critic_gets_a_gradient_and_the_data_none() -> None:
    critic = smooth_critic()
    real, fake = images(1).requires_grad_(), images(2).requires_grad_()
    gradient_penalty(critic, real, fake).backward()
    r1_penalty(critic, real, weight=1.0).backward()
    r2_penalty(critic, fake, weight=1.0).backward()
    weights = {name: p.grad for name, p in critic.named_parameters() if name.endswith("weight")}
    assert all(grad is not None and grad.abs().max() > 0 for grad in weights.values())
    assert real.grad is None
    assert fake.grad is None


def test_a_sample_without_slope_has_a_finite_gradient() -> None:
    critic = nn.Linear(8, 1)
    nn.init.zeros_(critic.weight)
    penalty = gradient_penalty(critic, torch.randn(4, 8), torch.randn(4, 8))
    penalty.backward()
    assert penalty.item() == pytest.approx(10.0)
    assert critic.weight.grad is not None
    assert torch.equal(critic.weight.grad, torch.zeros(1, 8))


def test_one_dead_sample_among_live_ones_poisons_nothing() -> None:
    # every unit of the ReLU is off at x = -1
    critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        critic[0].weight.abs_()
        critic[0].bias.zero_()
    points = torch.ones(2, 3)
    points[0] = -1.0
    gradient_penalty(critic, points, points).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())
    assert critic[0].weight.grad.abs().max() > 0


def test_a_critic_that_ignores_its_input_has_slope_zero() -> None:
    level = torch.ones(3, requires_grad=True)
    assert gradient_penalty(lambda x: level * 2, torch.randn(3, 4), torch.randn(3, 4), target=2.0).item() == pytest.approx(40.0)


def test_gradients_accumulate_over_several_penalties() -> None:
    critic, real, fake, alpha = smooth_critic(), images(1), images(2), torch.rand(5, dtype=DOUBLE)
    twice = copy.deepcopy(critic)
    gradient_penalty(critic, real, fake, alpha=alpha).backward()
    for _ in range(2):
        gradient_penalty(twice, real, fake, alpha=alpha).backward()
    for once, double in zip(critic.parameters(), twice.parameters(), strict=True):
        if once.grad is not None:
            torch.testing.assert_close(2 * once.grad, double.grad)


def test_a_graph_that_is_kept_can_go_backward_again_and_one_that_is_not_says_so() -> None:
    critic, real, fake, alpha = smooth_critic(), images(1), images(2), torch.rand(5, dtype=DOUBLE)
    penalty = gradient_penalty(critic, real, fake, alpha=alpha)
    first, *_ = torch.autograd.grad(3 * penalty, critic[0].weight, retain_graph=True)
    again, *_ = torch.autograd.grad(3 * penalty, critic[0].weight, retain_graph=True)
    third, *_ = torch.autograd.grad(penalty, critic[0].weight)
    assert torch.equal(first, again)
    torch.testing.assert_close(3 * third, first)
    with pytest.raises(RuntimeError, match="the first backward pass needs retain_graph=True"):
        torch.autograd.grad(penalty, critic[0].weight)


def test_its_gradients_are_the_first_that_a_backward_pass_hands_out() -> None:
    """Or those of every later pass would lie beside them until the end, and not be added to them."""
    critic = nn.Linear(3, 1)
    penalty = gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3))
    scores = critic(torch.randn(4, 3)).mean()
    ran: list[str] = []
    for name, value in (("scores", scores), ("penalty", penalty)):
        value.grad_fn.register_hook(lambda *_, name=name: ran.append(name))
    (scores + penalty).backward()
    assert ran == ["penalty", "scores"]


def test_a_channels_last_critic_goes_through_the_ops_own_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, against double backward in float64, for both kinds of convolution."""
    called: list[str] = []
    for name in ("convolution", "convolution_weight_gradient"):
        original = getattr(tangent, name)
        monkeypatch.setattr(tangent, name, lambda *a, name=name, original=original: called.append(name) or original(*a))
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(4, 6, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )
    critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 1)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact = copy.deepcopy(critic).double()
    real, fake, alpha = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.rand(3)
    gradient_penalty(critic, real, fake, alpha=alpha).backward()
    point = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1)).double().requires_grad_()
    (g,) = torch.autograd.grad(exact(point).sum(), point, create_graph=True)
    (10 * (g.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    for ours, wanted in zip(critic.parameters(), exact.parameters(), strict=True):
        if ours.grad is not None and wanted.grad is not None:
            # float32 sums of some hundred terms
            torch.testing.assert_close(ours.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5 * float(wanted.grad.abs().max()))
    assert called.count("convolution") == called.count("convolution_weight_gradient") == (3 if library.CPU == "cpp" else 0)


def test_a_second_derivative_is_refused_and_not_silently_zero() -> None:
    critic, real, fake = smooth_critic(), images(1), images(2)
    with pytest.raises(RuntimeError, match="cannot be differentiated: call backward without create_graph"):
        gradient_penalty(critic, real, fake).backward(create_graph=True)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.embedding = nn.Conv2d(2, 4, 3, dtype=DOUBLE), nn.Embedding(3, 64, dtype=DOUBLE)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return (torch.relu(self.first(x)).flatten(1) * self.embedding(y)).sum(1) * scale


@pytest.mark.parametrize("penalty", ["gp", "r1", "r2"])
def test_a_critic_is_called_with_its_conditions(penalty: str) -> None:
    critic, real, fake, alpha = Conditional(), images(1), images(2), torch.rand(5, dtype=DOUBLE)
    conditions = (torch.tensor([0, 2, 1, 1, 0]), torch.rand(5, dtype=DOUBLE))

    def value(critic: Callable[..., Tensor], **given: tuple[Tensor, ...]) -> Tensor:
        if penalty == "gp":
            return gradient_penalty(critic, real, fake, alpha=alpha, **given)
        return r1_penalty(critic, real, weight=2, **given) if penalty == "r1" else r2_penalty(critic, fake, weight=2, **given)

    found, expected = value(critic, conditions=conditions), value(lambda x: critic(x, *conditions))
    assert found.item() == expected.item() > 0
    for got, want in zip(
        *(torch.autograd.grad(v, [critic.first.weight, critic.embedding.weight]) for v in (found, expected)), strict=True
    ):
        assert torch.equal(got, want)
        assert got.abs().max() > 0
    plan = penalty_plan(critic, real, conditions=conditions)
    assert plan.kind == "four passes"


# shapes, types, modes


def test_output_columns_and_vectors_mean_the_same() -> None:
    critic, real, fake, alpha = smooth_critic(), images(1), images(2), torch.rand(5, dtype=DOUBLE)
    column = gradient_penalty(critic, real, fake, alpha=alpha)
    vector = gradient_penalty(lambda x: critic(x).squeeze(1), real, fake, alpha=alpha)
    assert torch.equal(column, vector)


def test_patches_are_summed_per_sample() -> None:
    torch.manual_seed(0)
    patches = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Conv2d(4, 1, 3)).double()
    real, fake, alpha = images(1), images(2), torch.rand(5, dtype=DOUBLE)
    assert patches(real).shape == (5, 1, 2, 2)
    summed = gradient_penalty(lambda x: patches(x).sum(dim=(1, 2, 3)), real, fake, alpha=alpha)
    assert gradient_penalty(patches, real, fake, alpha=alpha).item() == pytest.approx(summed.item(), rel=1e-12)


def test_points_and_sequences_are_data_too() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    assert gradient_penalty(lambda x: x @ weight, torch.randn(7, 2), torch.randn(7, 2)).item() == pytest.approx(160.0, rel=1e-5)


def test_autocast_keeps_norms_in_float32_and_gradients_close() -> None:
    torch.manual_seed(0)
    critic = smooth_critic().float()
    real, fake, alpha = images(1).float(), images(2).float(), torch.rand(5)
    exact = gradient_penalty(critic, real, fake, alpha=alpha)
    exact_grads = torch.autograd.grad(exact, critic[0].weight)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradient_penalty(critic, real, fake, alpha=alpha)
    assert low.dtype == torch.float32
    low_grads = torch.autograd.grad(low, critic[0].weight)
    assert low.item() == pytest.approx(exact.item(), rel=0.02)
    assert (low_grads[0] - exact_grads[0]).norm() < 0.05 * exact_grads[0].norm()


def test_bfloat16_data_and_critic_give_a_float32_penalty() -> None:
    critic = nn.Linear(50, 1).bfloat16()
    with torch.no_grad():
        critic.weight.fill_(1.0)
    points = torch.randn(6, 50, dtype=torch.bfloat16)
    penalty = gradient_penalty(critic, points, points, target=0.0, weight=1.0)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(50.0, rel=1e-6)
    # a squared slope of 50 is no bfloat16 sum: 257 ones would add up to 256 there
    wide = nn.Linear(257, 1).bfloat16()
    with torch.no_grad():
        wide.weight.fill_(1.0)
    points = torch.randn(2, 257, dtype=torch.bfloat16)
    assert r1_penalty(wide, points, weight=2.0).item() == 257.0


def test_channels_last_data_stays_channels_last() -> None:
    formats: list[bool] = []

    def critic(x: Tensor) -> Tensor:
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.flatten(1).sum(1)

    real = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    gradient_penalty(critic, real, real + 1)
    assert formats == [True]


def test_under_no_grad_the_value_is_the_same_and_has_no_graph() -> None:
    critic, real, fake, alpha = smooth_critic(), images(1), images(2), torch.rand(5, dtype=DOUBLE)
    with torch.no_grad():
        value = gradient_penalty(critic, real, fake, alpha=alpha)
    assert not value.requires_grad
    assert value.item() == pytest.approx(gradient_penalty(critic, real, fake, alpha=alpha).item(), rel=1e-12)


# refusals


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.flatten(1)[:, :4], r"expected critic output \(N,\) or \(N, 1\), got \(N, 4\)"),
        (lambda x: x.mean(), r"got \(\)"),
        (lambda x: x.flatten(1).sum(1)[:2], r"got \(2,\)"),
        (lambda x: x.sum(1), r"got \(N, 6, 6\)"),
    ],
)
def test_an_output_of_another_shape_is_refused(output: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        gradient_penalty(output, images(1), images(2))


def batch_norm_critic() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()


@pytest.mark.parametrize("wrap", ["module", "partial", "method", "lambda"])
@pytest.mark.parametrize("penalty", ["gp", "r1"])
def test_batch_norm_in_training_mode_is_refused_and_said_why(wrap: str, penalty: str) -> None:
    network = batch_norm_critic()
    critic = {
        "module": network,
        "partial": functools.partial(network),
        "method": network.forward,
        "lambda": lambda x: network(x),
    }[wrap]
    with pytest.raises(InvalidValue, match=r"BatchNorm1d in training mode: .*depend on every sample"):
        _ = r1_penalty(critic, images(1), weight=1.0) if penalty == "r1" else gradient_penalty(critic, images(1), images(2))
    assert int(network[2].num_batches_tracked) == 0


def test_batch_norm_in_evaluation_mode_is_an_affine_map_and_welcome() -> None:
    assert gradient_penalty(batch_norm_critic().eval(), images(1), images(2)).isfinite()


def test_batch_norm_as_a_function_is_refused_too() -> None:
    weight = torch.randn(72, 1, dtype=DOUBLE, requires_grad=True)
    critic = lambda x: nn.functional.batch_norm(x.flatten(1), None, None, training=True) @ weight  # noqa: E731
    with pytest.raises(InvalidValue, match="batch norm in training mode"):
        gradient_penalty(critic, images(1), images(2))


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g


@pytest.mark.parametrize("how", ["unreadable", "no_grad", "reshaped"])
def test_batch_norm_as_a_function_does_not_hide(how: str) -> None:
    rows = 10 if how == "reshaped" else 5
    critic = lambda x: Identity.apply(  # noqa: E731
        nn.functional.batch_norm(x.reshape(rows, -1), None, None, training=True) * torch.ones((), requires_grad=True)
    ).reshape(5, -1)[:, 0]
    with pytest.raises(InvalidValue, match="batch norm in training mode"), torch.set_grad_enabled(how != "no_grad"):
        r1_penalty(critic, images(1), weight=1.0)


def test_fused_attention_is_welcome() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True).double()
    critic = lambda x: layer(x.squeeze(-1)).sum((1, 2))  # noqa: E731
    penalty = r1_penalty(critic, images(1)[:, 0].unsqueeze(-1), weight=1.0)
    penalty.backward()
    assert layer.self_attn.in_proj_weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"real": [1.0]}, InvalidType, "expected real samples as a tensor, got list"),
        ({"alpha": 0.5}, InvalidType, r"expected alpha as a tensor \(5,\), got float"),
        ({"conditions": (3.0,)}, InvalidType, "every condition as a tensor, got float"),
        ({"conditions": torch.zeros(5)}, InvalidType, r"conditions as a tuple of tensors, such as \(labels,\), got Tensor"),
        ({"kind": None}, InvalidValue, "no kind None"),
        ({"target": None}, InvalidType, "target slope as a number, got NoneType"),
        ({"weight": "10"}, InvalidType, "penalty weight as a number, got str"),
        ({"critic": None}, InvalidType, "critic as a module or function, got NoneType"),
        ({"conditions": (torch.zeros(4),)}, InvalidValue, r"a condition for each sample, \(5, ...\), got \(4,\)"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"critic": smooth_critic(), "real": images(1), "fake": images(2), **arguments}
    with pytest.raises(error, match=message):
        gradient_penalty(given.pop("critic"), given.pop("real"), given.pop("fake"), **given)


def test_samples_that_autograd_cannot_follow_are_refused() -> None:
    with torch.inference_mode():
        real = images(1) * 1
    with pytest.raises(InvalidValue, match="made under inference_mode"):
        r1_penalty(smooth_critic(), real, weight=1.0)


def test_instance_norm_and_layer_norm_are_welcome() -> None:
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.LayerNorm(4), nn.Flatten(), nn.Linear(48, 1)).double()
    assert gradient_penalty(critic, images(1), images(2)).isfinite()


def test_bad_arguments_are_named() -> None:
    critic, real = smooth_critic(), images(1)
    with pytest.raises(InvalidValue, match=r"no kind 'one-side'; did you mean 'one-sided'"):
        gradient_penalty(critic, real, real, kind="one-side")
    with pytest.raises(InvalidValue, match=r"real and fake of one shape, got \(5, 2, 6, 6\) and \(4, 2, 6, 6\)"):
        gradient_penalty(critic, real, real[:4])
    with pytest.raises(InvalidValue, match=r"one alpha per sample, \(5,\), got \(5, 1\)"):
        gradient_penalty(critic, real, real, alpha=torch.rand(5, 1))
    with pytest.raises(InvalidValue, match="weight >= 0, got -1"):
        gradient_penalty(critic, real, real, weight=-1)
    with pytest.raises(InvalidValue, match="weight >= 0, got nan"):
        r1_penalty(critic, real, weight=math.nan)
    with pytest.raises(InvalidValue, match="target slope >= 0"):
        gradient_penalty(critic, real, real, target=-0.5)
    with pytest.raises(InvalidType, match=r"real samples in a floating point type, got torch\.uint8"):
        gradient_penalty(critic, real.byte(), real)
    with pytest.raises(InvalidValue, match=r"fake samples \(N, \.\.\.\) with N >= 1, got \(0, 2, 6, 6\)"):
        r2_penalty(critic, real[:0], weight=1.0)
    with pytest.raises(InvalidType, match="return a tensor, got tuple"):
        r1_penalty(lambda x: (x, x), real, weight=1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidValue, match="carries no gradient"):
        r1_penalty(lambda x: x.detach().flatten(1).sum(1), real, weight=1.0)


GLOBAL = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_batch_norm_is_seen_however_the_critic_is_wrapped() -> None:
    class Holder:
        def __call__(self, x: Tensor) -> Tensor:
            return GLOBAL(x)

    real, fake = torch.randn(3, 4), torch.randn(3, 4)
    for critic in (lambda x: GLOBAL(x), Holder()):
        with pytest.raises(InvalidValue, match="BatchNorm1d in training mode"):
            gradient_penalty(critic, real, fake)


def test_a_compiled_critic_is_penalised_like_itself() -> None:
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1)).double()
    results = []
    for each in (critic, torch.compile(critic, backend="aot_eager")):
        critic.zero_grad()
        r1_penalty(each, images(1), weight=3.0).backward()
        results.append([None if p.grad is None else p.grad.clone() for p in critic.parameters()])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)


# the plan


def test_the_plan_says_how_and_why() -> None:
    piecewise = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * 30 * 30, 1))
    plan = penalty_plan(piecewise)
    assert (plan.kind, plan.operations, plan.curved) == ("four passes", 4, {})
    assert str(plan) == "four passes: 4 operations, all with a Jacobian that is constant in pieces"
    plan = penalty_plan(smooth_critic(), images(1))
    assert (plan.kind, plan.curved) == ("six passes", {"Softplus": 1, "Tanh": 1})
    assert "1 Softplus, 1 Tanh" in str(plan)


def test_the_plan_knows_what_only_shows_on_the_way() -> None:
    def hooked(x: Tensor) -> Tensor:
        x = x * 1
        x.register_hook(lambda g: 2 * g)
        return x.sum((1, 2, 3))

    plan = penalty_plan(hooked, images(1))
    assert plan.kind == "double backward"
    assert "hook" in plan.reason


def test_a_plan_moves_nothing() -> None:
    critic = spectral_norm_(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1)), per_call=True)
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    drawn = torch.random.get_rng_state()
    assert penalty_plan(critic).kind == "four passes"
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())
    assert all(p.grad is None for p in critic.parameters())


def test_a_plan_for_no_critic_is_refused() -> None:
    with pytest.raises(InvalidValue, match="give one, penalty_plan"):
        penalty_plan(lambda x: x.sum(1))
    with pytest.raises(InvalidValue, match="BatchNorm1d in training mode"):
        penalty_plan(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
