"""Merged convolutions against the two layers that each of them is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity
from torch import Tensor, nn

from ganfast import losses, penalised_loss, penalty_plan
from ganfast.models import resnet
from ganfast.models.shape import SampleShape
from ganfast.nn import spectral_norm_
from ganfast.nn.resample import ConvMeanPool2d, UpsampleConv2d, convolve_pooled, convolve_upsampled
from ganfast.penalties import gradient_penalty

DOUBLE = torch.float64
Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


def upsampled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)


MERGED: dict[str, tuple[Convolution, Convolution]] = {
    "pooled": (convolve_pooled, pooled),
    "upsampled": (convolve_upsampled, upsampled),
}
merged = pytest.mark.parametrize(("ours", "plain"), MERGED.values(), ids=MERGED)
SIZES = [(2, 2), (2, 5), (3, 4), (7, 7), (8, 8), (9, 6)]  # one pixel of what is pooled is all border
AT = [(name, size) for name in MERGED for size in [*SIZES, *([(1, 1), (1, 6)] if name == "upsampled" else [])]]


def inputs(
    size: tuple[int, int],
    channels: tuple[int, int] = (3, 4),
    dtype: torch.dtype = DOUBLE,
    layout: torch.memory_format | None = None,
) -> list[Tensor]:
    """Data, weight, bias."""
    given = torch.randn(2, channels[0], *size), torch.randn(channels[1], channels[0], 3, 3), torch.randn(channels[1])
    laid_out = [t.to(dtype).contiguous(memory_format=layout) if layout and t.dim() == 4 else t.to(dtype) for t in given]
    return [t.requires_grad_() for t in laid_out]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("name", "size"), AT)
def test_value_first_and_second_derivatives_are_those_of_two_layers(
    name: str, size: tuple[int, int], biased: bool, layout: torch.memory_format
) -> None:
    ours, plain = MERGED[name]
    given = inputs(size, layout=layout)
    given = given if biased else given[:2]

    def all_of(convolution: Convolution) -> list[Tensor]:
        y = convolution(*(given if biased else [*given, None]))
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(y.shape, dtype=DOUBLE, generator=generator).requires_grad_()
        first = torch.autograd.grad(y, given, upstream, create_graph=True)
        along = [torch.randn(t.shape, dtype=DOUBLE, generator=generator) for t in first[:2]]  # the bias's is a sum: no second
        second = torch.autograd.grad(first[:2], [*given[:2], upstream], along)
        return [y, *first, *second]

    for found, expected in zip(all_of(ours), all_of(plain), strict=True):
        assert found.shape == expected.shape
        # roundings of sums of up to 36 C terms of size one
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@merged
def test_gradients_are_those_of_finite_differences(ours: Convolution, plain: Convolution) -> None:
    given = inputs((4, 3), (2, 2))
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@merged
def test_one_layer_rounds_no_more_than_two(ours: Convolution, plain: Convolution, dtype: torch.dtype) -> None:
    given = [t.detach() for t in inputs((8, 8), (16, 16), dtype)]
    exact = plain(*(t.double() for t in given))
    assert_parity(ours(*given), plain(*given), exact, reduce_length=16 * 16)


@merged
def test_nan_and_inf_stay_where_they_were_seen(ours: Convolution, plain: Convolution) -> None:
    x, weight, bias = (t.detach() for t in inputs((8, 8)))
    weight = weight.abs()  # or one Inf meets both signs
    x[0, 0, 3, 3], x[1, 2, 0, 7] = float("nan"), float("inf")
    assert torch.equal(ours(x, weight, bias).isfinite(), plain(x, weight, bias).isfinite())


@merged
def test_the_result_lies_as_that_of_two_layers(ours: Convolution, plain: Convolution) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        given = [t.detach() for t in inputs((8, 8), dtype=torch.float32, layout=layout)]
        assert ours(*given).is_contiguous(memory_format=layout)


@merged
def test_nothing_comes_of_no_samples(ours: Convolution, plain: Convolution) -> None:
    x, weight, bias = inputs((4, 4))
    assert ours(x[:0], weight, bias).shape == plain(x[:0], weight, bias).shape


@merged
def test_they_compile_into_one_graph(ours: Convolution, plain: Convolution) -> None:
    given = inputs((4, 4), dtype=torch.float32)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), plain(*given))


LAYERS: dict[str, tuple[type[nn.Conv2d], nn.Module]] = {
    "pooled": (ConvMeanPool2d, nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2))),
    "upsampled": (UpsampleConv2d, nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1))),
}


@pytest.mark.parametrize(("kind", "two"), LAYERS.values(), ids=LAYERS)
def test_a_layer_has_the_parameters_of_a_convolution(kind: type[nn.Conv2d], two: nn.Module) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4).double()  # type: ignore[call-arg]
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=1).double()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in layer.state_dict().items())  # of one seed
    conv = next(module for module in two.modules() if isinstance(module, nn.Conv2d)).double()
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    seen: list[nn.Module] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
    torch.testing.assert_close(layer(x), two(x), rtol=1e-12, atol=1e-12)
    assert seen == [layer]
    layer._forward_hooks.clear()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize(("kind", "two"), LAYERS.values(), ids=LAYERS)
def test_spectral_norm_divides_the_weight_of_3_by_3(kind: type[nn.Conv2d], two: nn.Module) -> None:
    layer = spectral_norm_(kind(3, 4).double(), n_iterations=50)  # type: ignore[call-arg]
    conv = next(module for module in two.modules() if isinstance(module, nn.Conv2d)).double()
    original = layer.state_dict()["weight"]
    sigma = torch.linalg.matrix_norm(original.flatten(1), 2)
    conv.load_state_dict({"weight": original / sigma, "bias": layer.state_dict()["bias"]})
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    for _ in range(3):
        layer.eval()(x)
    # sigma by 15 power iterations when it was made, whose square of the ratio of singular values is below 1 only by some percent
    found, expected = layer(x) - layer.bias.view(-1, 1, 1), two(x) - conv.bias.view(-1, 1, 1)
    ratio = found / expected
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-9, atol=0)
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


class TwoLayers(nn.Module):
    """A merged layer's parameters in the two layers that it stands for."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return pooled(x, self.weight, self.bias)


def critics() -> tuple[nn.Module, nn.Module]:
    """Merged, and the same weights unmerged."""
    ours = resnet.Critic(SampleShape(3, 16), 6).double()
    resnet.initialise(ours)
    plain = copy.deepcopy(ours)
    for block in plain.blocks:
        if isinstance(block.conv2, ConvMeanPool2d):
            block.conv2 = TwoLayers(block.conv2)
    return ours, plain


def test_a_merged_critic_is_penalised_in_four_passes_and_as_the_unmerged_one() -> None:
    ours, plain = critics()
    assert penalty_plan(ours).kind == "four passes"
    real, fake, alpha = torch.randn(3, 3, 16, 16, dtype=DOUBLE), torch.randn(3, 3, 16, 16, dtype=DOUBLE), torch.rand(3).double()
    value = gradient_penalty(ours, real, fake, alpha=alpha)
    point = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1)).requires_grad_()
    (g,) = torch.autograd.grad(plain(point).sum(), point, create_graph=True)
    expected = 10 * (g.flatten(1).norm(dim=1) - 1).square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    mine, theirs = (
        torch.autograd.grad(loss, list(critic.parameters()), materialize_grads=True, allow_unused=True)
        for loss, critic in ((value, ours), (expected, plain))
    )
    largest = max(t.abs().max().item() for t in theirs)
    for found, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * largest)


def test_a_merged_critic_is_proven_to_keep_samples_apart() -> None:
    critic, _ = critics()
    real, fake = torch.randn(3, 3, 16, 16, dtype=DOUBLE), torch.randn(3, 3, 16, 16, dtype=DOUBLE)
    sizes: list[int] = []
    penalised_loss(critic, real, fake, losses.wasserstein_critic)  # which looks at the critic once
    critic.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    penalised_loss(critic, real, fake, losses.wasserstein_critic)
    assert sizes == [9]  # all in one batch


def test_the_residual_blocks_are_those_of_the_paper() -> None:
    """Gulrajani et al. 2017, appendix F: convolutions of 3 x 3 and resampling beside them."""
    G, D = resnet.Generator(SampleShape(3, 16), 4, 6), resnet.Critic(SampleShape(3, 16), 6)
    for network in (G, D):
        kernels = {tuple(m.kernel_size) for m in network.modules() if isinstance(m, nn.Conv2d)}
        assert kernels == {(3, 3), (1, 1)}
    assert sum(isinstance(m, UpsampleConv2d) for m in G.modules()) == 2
    assert sum(isinstance(m, ConvMeanPool2d) for m in D.modules()) == 1
