"""One chain by itself: the op in training, the folded convolution in evaluation, and what is left to the modules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_twins import assert_close, assert_same_state, assert_twins, ops_of, twins
from parity import assert_parity
from torch import Tensor, nn

import ganfast
from ganfast.errors import InvalidValue
from ganfast.nn import chain as chains
from ganfast.nn import fuse, statistics_groups

served = pytest.mark.compiled


def images(*shape: int) -> Tensor:
    return torch.randn(shape or (8, 4, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def network(conv: nn.Module | None, norm: nn.Module, act: nn.Module | None) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(*(layer for layer in (conv, norm, act) if layer is not None))
    for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
        nn.init.uniform_(tensor, 0.5, 2.0)
    return made


NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "cumulative": {"momentum": None},
    "still": {"momentum": 0.0},
    "large eps": {"eps": 0.5, "momentum": 0.7},
}


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-0.2), nn.LeakyReLU(1.0), nn.Tanh(), None], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", [True, False])
def test_every_norm_and_activation(conv: bool, norm: str, act: nn.Module | None) -> None:
    layers = (nn.Conv2d(4, 4, 3) if conv else None, nn.BatchNorm2d(4, **NORMS[norm]), copy.deepcopy(act))
    plain, fused = twins(network(*layers))
    assert_twins(plain, fused, images(), modes=[True, True, True, False, True])


CONVOLUTIONS: list[tuple[nn.Module, type[nn.Module], tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm1d, (9, 4, 11)),
    (nn.Conv2d(4, 6, 3, dilation=2, bias=False), nn.BatchNorm2d, (9, 4, 9, 9)),
    (nn.Conv2d(4, 6, (3, 1), padding="same", padding_mode="reflect"), nn.BatchNorm2d, (9, 4, 6, 5)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"), nn.BatchNorm2d, (9, 4, 6, 6)),
    (nn.Conv3d(2, 3, 2), nn.BatchNorm3d, (9, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.BatchNorm1d, (12, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d, (20, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2), nn.BatchNorm2d, (9, 4, 5, 6)),
    (nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2), nn.BatchNorm3d, (9, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("conv", "norm", "shape"), CONVOLUTIONS, ids=lambda v: type(v).__name__)
def test_every_convolution_is_folded(conv: nn.Module, norm: type[nn.Module], shape: tuple[int, ...]) -> None:
    plain, fused = twins(network(copy.deepcopy(conv), norm(conv.out_channels), nn.LeakyReLU(0.1)))
    assert_twins(plain, fused, images(*shape))
    assert ops_of(fused.eval(), images(*shape)).count("batch_norm") == 0
    assert ops_of(plain.eval(), images(*shape)).count("batch_norm") == 1


def standardise(weight: Tensor) -> Tensor:
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, standardise(weight), bias)


def patched() -> nn.Conv2d:
    """Tiled as images are whose edges meet: what is usually put into a network that is made already."""
    conv = nn.Conv2d(4, 6, 3)
    conv._conv_forward = lambda x, weight, bias: nn.functional.conv2d(  # type: ignore[method-assign]
        nn.functional.pad(x, (1, 1, 1, 1), "circular"), weight, bias
    )
    return conv


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("conv", [lambda: Standardised(4, 6, 3), patched])
def test_what_a_convolution_does_inside_is_done(conv: Callable[[], nn.Conv2d], layout: torch.memory_format) -> None:
    plain, fused = (n.to(memory_format=layout) for n in twins(network(conv(), nn.BatchNorm2d(6), nn.ReLU())))
    assert_twins(plain, fused, images())


@served
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_what_our_own_convolution_does_inside_is_done(layer: type[nn.Module]) -> None:
    """Where they are subclassed, as PyTorch's."""
    ours = {nn.Conv2d: ganfast.nn.Conv2d, nn.ConvTranspose2d: ganfast.nn.ConvTranspose2d}[layer]

    class Doubled(ours):  # type: ignore[misc, valid-type]
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input)

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return nn.functional.conv2d(3 * input, weight, bias)

    for layout in (torch.contiguous_format, torch.channels_last):
        conv = Doubled(4, 6, 3).to(memory_format=layout)
        x = images().float()
        if layer is nn.Conv2d:
            expected = nn.functional.conv2d(6 * x, conv.weight, conv.bias)
        else:
            expected = nn.functional.conv_transpose2d(2 * x, conv.weight, conv.bias)
        torch.testing.assert_close(conv(x), expected)


@served
@pytest.mark.parametrize("channels", [8, 40])
def test_a_map_without_pixels_is_pytorchs(channels: int) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(4, channels, 2, 1, 1), nn.BatchNorm2d(channels), nn.ReLU())
    fused = fuse(network.to(memory_format=torch.channels_last).eval())
    x = torch.randn(2, 4, 1, 1, requires_grad=True)
    y = fused(x)
    assert y.shape == (2, channels, 0, 0)
    y.sum().backward()
    assert not x.grad.any()


@served
def test_relu_of_minus_infinity_is_zero() -> None:
    """As PyTorch's is, with a convolution before it and without."""
    x = images().float()
    x[0, 0, 0, 0] = -torch.inf
    one = nn.Conv2d(4, 4, 1, groups=4)
    nn.init.ones_(one.weight)
    for conv in (None, one):
        plain = network(conv, nn.BatchNorm2d(4), nn.ReLU()).eval()
        fused = fuse(copy.deepcopy(plain))
        with torch.no_grad():
            y = plain(x)
            assert y[0, 0, 0, 0] == 0
            torch.testing.assert_close(fused(x), y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_results_lie_in_memory_as_batch_norms_do(dims: int, training: bool) -> None:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    plain = nn.Sequential(norm(4), nn.ReLU()).train(training)
    fused = fuse(copy.deepcopy(plain))
    seen = []
    for order in itertools.permutations(range(dims + 2)):
        sizes = [6, 9, 8, 7, 5][: dims + 2]
        whole = torch.randn([sizes[axis] for axis in order]).permute([order.index(axis) for axis in range(dims + 2)])
        for x in (whole, whole[..., 1:4], whole[..., ::2]):
            given = x[:, 2:6]
            for each in (given, given.contiguous()):
                with torch.no_grad():
                    theirs, ours = plain(each), fused(each)
                assert ours.stride() == theirs.stride(), (each.shape, each.stride())
                torch.testing.assert_close(ours, theirs)
                seen.append(ours.is_contiguous())
    assert True in seen and (dims == 1 or False in seen)  # and so channels last


@pytest.mark.parametrize("change", ["a float counter", "no counter", "a mean with gaps", "a long counter"])
def test_buffers_of_any_kind_are_tracked(change: str) -> None:
    def changed(network: nn.Sequential) -> nn.Sequential:
        norm: Any = network[0]
        if change == "a mean with gaps":
            norm.running_mean = torch.zeros(8)[::2]
        else:
            counter = {"a float counter": torch.tensor(0.0), "no counter": None, "a long counter": torch.tensor([0])}[change]
            norm.num_batches_tracked = counter
        return network

    plain, fused = (changed(n) for n in (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)))
    fuse(fused)
    for step in range(3):
        x = images().float() * (1 + step)
        torch.testing.assert_close(fused(x), plain(x))
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_types_that_pytorch_refuses_together_are_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4).double(), nn.ReLU()).eval()
    for network in (plain, fuse(copy.deepcopy(plain))):
        with pytest.raises(RuntimeError, match="dtype"):
            network(images().float())


def test_a_module_in_few_bits_is_folded_under_autocast_too() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).bfloat16().eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert ops_of(fuse(network), images().float()).count("batch_norm") == 0


def test_statistics_of_several_types_are_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).bfloat16().eval()
    plain[1].weight.data = plain[1].weight.data.float()
    for network in (plain, fuse(copy.deepcopy(plain))):
        with pytest.raises(RuntimeError, match="dtype"):
            network(images().bfloat16())


def test_statistics_of_another_size_are_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    plain[1].running_mean = torch.zeros(1)
    for network in (plain, fuse(copy.deepcopy(plain))):
        with pytest.raises(RuntimeError, match="running_mean"):
            network(images().float())


def test_a_weight_larger_than_the_images_is_not_made_anew() -> None:
    plain, fused = twins(network(nn.Conv2d(64, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    x = images(1, 64, 4, 4)
    assert_twins(plain, fused, x, modes=[False, True, False])
    assert ops_of(fused.eval(), x).count("native_batch_norm") == 1
    assert ops_of(fused, x.repeat(40, 1, 1, 1)).count("native_batch_norm") == 0


def test_folding_follows_every_change_of_a_parameter() -> None:
    plain, fused = twins(network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    for both in (plain.eval(), fused.eval()):
        both(images())
        both[0].weight.data.mul_(2)  # what moves no version counter
        both[1].running_var.data.fill_(3)
    assert_close([fused(images())], [plain(images())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_fewer_bits_round_no_worse(dtype: torch.dtype, training: bool) -> None:
    exact = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)).double().train(training)
    for p in exact.parameters():
        p.data = p.to(dtype).double()
    plain = copy.deepcopy(exact).to(torch.float32)
    if dtype != torch.float32:
        plain[0].to(dtype)  # batch norm keeps float32
    fused = fuse(copy.deepcopy(plain))
    x = images().to(dtype)
    ours, theirs = fused(x), plain(x)
    assert_parity(ours, theirs, exact(x.double()), reduce_length=4 * 9 + 8 * 16)
    (ours.float().square().sum()).backward()
    assert [p.grad is not None and p.grad.dtype == p.dtype for p in fused.parameters()] == [True] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_all_in_few_bits_stays_with_its_own_kernels(dtype: torch.dtype) -> None:
    plain = network(None, nn.BatchNorm2d(4), nn.ReLU()).to(dtype)
    fused = fuse(copy.deepcopy(plain))
    assert torch.equal(fused(images().to(dtype)), plain(images().to(dtype)))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh()], ids=str)
def test_without_a_kernel_the_modules_run_as_they_are(monkeypatch: pytest.MonkeyPatch, act: nn.Module) -> None:
    monkeypatch.setattr(chains, "_SERVED", [])
    plain = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), act).double()
    fused = fuse(copy.deepcopy(plain))
    for _ in range(2):
        assert torch.equal(fused(images()), plain(images()))
    assert all(torch.equal(a, b) for a, b in zip(fused.buffers(), plain.buffers(), strict=True))


def test_an_input_that_carries_nan_and_inf_gives_them_where_the_modules_do() -> None:
    plain, fused = twins(network(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.LeakyReLU(0.2)))
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], dtype=torch.float64).view(1, 1, 2, 2).repeat(4, 1, 1, 1)
    for training in (False, True):
        ours, theirs = fused.train(training)(x), plain.train(training)(x)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 6, 6), (2, 3, 6, 6), (2, 4, 6, 6, 6)])
def test_errors_are_the_modules_own(shape: tuple[int, ...], conv: bool, training: bool) -> None:
    layer = nn.Conv2d(4, 4, 1) if conv else None
    found = []
    for module in twins(network(layer, nn.BatchNorm2d(4), nn.ReLU())):
        try:
            found.append(module.train(training)(images(*shape)).shape)
        except (ValueError, RuntimeError) as error:
            found.append((type(error), str(error)))  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_channels_that_do_not_agree_are_an_error_still() -> None:
    for module in twins(nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(1), nn.ReLU())):
        for training in (True, False):
            with pytest.raises(RuntimeError, match="running_mean should contain 2 elements not 1"):
                module.train(training)(images())


def test_no_batch_at_all() -> None:
    plain, fused = (module.eval() for module in twins(network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    assert fused(images(0, 4, 6, 6)).shape == plain(images(0, 4, 6, 6)).shape


# ---- statistics groups


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=served), False])
@pytest.mark.parametrize("norm", NORMS)
def test_groups_are_calls_one_after_the_other(norm: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(chains, "_SERVED", [])
    alone, fused = twins(
        nn.Sequential(
            *network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, **NORMS[norm]), nn.LeakyReLU(0.2)),
            *network(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, **NORMS[norm]), None),
        )
    )
    x = images(9, 4, 6, 6) * torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64).repeat_interleave(3).view(9, 1, 1, 1)
    for _ in range(2):
        with statistics_groups(fused, 3):
            together = fused(x)
        apart = torch.cat([alone(part) for part in x.chunk(3)])
        assert_close([together], [apart])
        gradients = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((together, fused), (apart, alone))]
        assert_close(gradients[0], gradients[1])
        assert_same_state(fused, alone)
    assert_close([fused(x)], [alone(x)])  # outside of it, one batch
    with statistics_groups(fused.eval(), 3):
        assert_close([fused(x)], [torch.cat([alone.eval()(part) for part in x.chunk(3)])])


def test_groups_reach_batch_norms_that_are_in_no_chain() -> None:
    layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ELU(), nn.BatchNorm1d(4), nn.ReLU(), nn.SyncBatchNorm(4))
    alone, fused = twins(nn.Sequential(*layers))
    fused[1].register_forward_hook(lambda *_: None)
    alone[3].forward, fused[3].forward = (
        lambda x, norm=norm: nn.BatchNorm1d.forward(norm, 2 * x) for norm in (alone[3], fused[3])
    )
    x = images(8, 4)
    with statistics_groups(fused, 4), statistics_groups(fused, 2):
        together = fused(x)
    assert_close([together], [torch.cat([alone(part) for part in x.chunk(2)])])
    assert_same_state(fused, alone)
    assert "forward" in fused[3].__dict__ and "forward" not in fused[1].__dict__
    assert_close([fused(x)], [alone(x)])


@served
def test_groups_are_one_pass_in_a_chain() -> None:
    fused = fuse(network(None, nn.BatchNorm2d(4), nn.ReLU()))
    with statistics_groups(fused, 2):
        ops = ops_of(fused, images().float())
    assert (ops.count("ganfast::batch_norm_act"), ops.count("native_batch_norm")) == (1, 0)


@served
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh()], ids=str)
@pytest.mark.parametrize("norm", ["plain", "no affine"])
def test_evaluation_without_a_convolution_is_one_pass_where_nothing_is_differentiated(norm: str, act: nn.Module) -> None:
    plain, fused = (n.eval() for n in twins(network(None, nn.BatchNorm2d(4, **NORMS[norm]), act)))
    x = images()
    for on in (True, False):
        with torch.set_grad_enabled(on):
            ops, learns = ops_of(fused, x), on and norm != "no affine"
            assert (ops.count("ganfast::normalise_act"), ops.count("native_batch_norm")) == ((0, 1) if learns else (1, 0))
            assert_close([fused(x)], [plain(x)])
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(fused(point).square().sum(), point)
    (expected,) = torch.autograd.grad(plain(point).square().sum(), point)
    assert_close([found], [expected])


def test_groups_that_cannot_be_are_errors() -> None:
    fused = fuse(network(None, nn.BatchNorm2d(4), nn.ReLU()))
    with statistics_groups(fused, 3), pytest.raises(InvalidValue, match="3 groups of statistics divide, got 8"):
        fused(images().float())
    with pytest.raises(InvalidValue, match="got 0"), statistics_groups(fused, 0):
        pass
    assert not any("forward" in module.__dict__ for module in fused.modules())
