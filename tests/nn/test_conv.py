"""ganfast's convolution layers: PyTorch's, by the op where it has a kernel, and what a gradient penalty reads of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parity import assert_parity
from torch import Tensor, nn

import ganfast
from ganfast.nn import Conv2d, ConvTranspose2d

pytestmark = pytest.mark.tier(2)

LAYERS: list[tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = [
    (Conv2d, nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    (Conv2d, nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}),
    (Conv2d, nn.Conv2d, {"kernel_size": 1}),
    (Conv2d, nn.Conv2d, {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1)}),
    (Conv2d, nn.Conv2d, {"kernel_size": 3, "groups": 2, "dilation": 2}),
    (Conv2d, nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (Conv2d, nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
    (ConvTranspose2d, nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    (ConvTranspose2d, nn.ConvTranspose2d, {"kernel_size": 4, "bias": False}),
    (ConvTranspose2d, nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
]


PRODUCTS = ("convolve", "transposed_convolve", "convolution_weight_gradient")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("ours", "theirs", "options"), LAYERS)
def test_a_layer_is_pytorchs(
    ours: type[nn.Module], theirs: type[nn.Module], options: dict[str, Any], layout: torch.memory_format
) -> None:
    plain = theirs(4, 6, **options).to(memory_format=layout)  # type: ignore[call-overload]
    layer = ours(4, 6, **options).to(memory_format=layout)  # type: ignore[call-overload]
    layer.load_state_dict(plain.state_dict())
    exact = copy.deepcopy(plain).double()
    x = torch.randn(3, 4, 8, 6).to(memory_format=layout)
    results = [_run(each, x.to(next(each.parameters()).dtype)) for each in (layer, plain, exact)]
    assert results[0][0].stride() == results[1][0].stride()
    for name, made, same, true in zip(("y", "dx", *dict(plain.named_parameters())), *results, strict=True):
        assert_parity(made, same, true, reduce_length=4 * 16 * x.shape[0] * 48, name=name)


def _run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    return [y.detach(), *grads]


def test_an_output_size_is_asked_for_as_of_pytorchs() -> None:
    layer = ConvTranspose2d(2, 3, 3, stride=2)
    plain = nn.ConvTranspose2d(2, 3, 3, stride=2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(layer(x, output_size=[10, 10]), plain(x, output_size=[10, 10]))


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("by", ["x", "weight", "bias", "twice the weight"])
def test_autograd_grad_computes_what_it_was_asked_for_alone(
    kind: type[nn.Module], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = kind(4, 6, 4, 2, 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, weight = torch.randn(2, 4, 8, 8, requires_grad=True), layer.get_parameter("weight")
    inputs = {"x": x, "weight": weight, "bias": layer.get_parameter("bias"), "twice the weight": 2 * weight}
    given = {"weight": inputs["twice the weight"]} if by == "twice the weight" else {}
    y = torch.func.functional_call(layer, given, (x,))
    inputs["twice the weight"].retain_grad()
    y.sum().backward(retain_graph=True)
    whole = copy.copy(inputs[by].grad)
    assert whole is not None
    inputs[by].grad = None
    of_weight = "convolution_weight_gradient"
    for name in {"x": [of_weight], "bias": PRODUCTS}.get(by, [name for name in PRODUCTS if name != of_weight]):
        monkeypatch.setattr(f"ganfast.ops.convolution.{name}", None)
    (alone,) = torch.autograd.grad(y.sum(), inputs[by])
    assert torch.equal(alone, whole)


def critics() -> tuple[nn.Sequential, nn.Sequential]:
    """One of ganfast's layers and one of PyTorch's, channels last, with the same weights."""

    def built(conv: type[nn.Module], transposed: type[nn.Module]) -> nn.Sequential:
        return nn.Sequential(
            conv(3, 8, 3, padding=1),  # type: ignore[call-arg]
            nn.LeakyReLU(0.2, inplace=True),
            conv(8, 12, 4, 2, 1),  # type: ignore[call-arg]
            nn.ReLU(),
            transposed(12, 8, 4, 2, 1),  # type: ignore[call-arg]
            nn.LeakyReLU(0.2),
            conv(8, 1, 8, bias=False),  # type: ignore[call-arg]
            nn.Flatten(0),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    ours, plain = built(Conv2d, ConvTranspose2d), built(nn.Conv2d, nn.ConvTranspose2d)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def test_a_penalty_reads_the_layers_and_takes_four_passes() -> None:
    ours, plain = critics()
    real, fake, alpha = torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8), torch.rand(5)
    assert "four passes" in str(ganfast.penalty_plan(ours, real))
    assert type(ours(real).grad_fn.next_functions[0][0]).__name__ != "ConvolutionBackward0"
    ganfast.gradient_penalty(ours, real, fake, alpha=alpha).backward()  # type: ignore[no-untyped-call]

    exact = copy.deepcopy(plain).double()
    for critic in (plain, exact):
        kind = next(critic.parameters()).dtype
        x = fake.to(kind) + alpha.to(kind).view(-1, 1, 1, 1) * (real - fake).to(kind)
        (g,) = torch.autograd.grad(critic(x.requires_grad_()).sum(), x, create_graph=True)
        (10 * (g.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    for name, parameter in ours.named_parameters():
        same, true = (dict(critic.named_parameters())[name].grad for critic in (plain, exact))
        if true is not None:  # double backward gives the last bias nothing
            assert parameter.grad is not None and same is not None
            assert_parity(parameter.grad, same, true, reduce_length=8 * 16 * 64 * 5, name=name)


def test_a_frozen_layer_gets_no_gradient_from_a_penalty() -> None:
    ours, _ = critics()
    ours[2].requires_grad_(False)
    ganfast.gradient_penalty(ours, torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)).backward()  # type: ignore[no-untyped-call]
    assert ours[2].weight.grad is None and ours[0].weight.grad is not None


def test_a_weight_that_depends_on_the_data_is_left_to_double_backward() -> None:
    layer = Conv2d(2, 1, 2, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def critic(x: Tensor) -> Tensor:
        weight = (layer.weight * x.mean()).contiguous(memory_format=torch.channels_last)
        return torch.stack([torch.func.functional_call(layer, {"weight": weight}, (each[None],)).sum() for each in x])

    assert "double backward" in str(ganfast.penalty_plan(critic, torch.randn(3, 2, 4, 4)))


def test_shapes_alone_and_a_bias_of_another_type_are_as_with_pytorchs() -> None:
    with torch.device("meta"):
        assert Conv2d(3, 4, 3)(torch.randn(1, 3, 8, 8)).shape == (1, 4, 6, 6)
    layer = Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer.bias.data = layer.bias.data.double()
    with pytest.raises(RuntimeError, match="bias"):
        layer(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("bias", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_under_autocast_the_op_takes_weight_and_bias_of_either_type(weight: torch.dtype, bias: torch.dtype) -> None:
    # spectral norm hands over weights that are cast already, beside biases in float32
    layer = Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact = copy.deepcopy(plain).double()
    types = {"weight": weight, "bias": bias}
    x = torch.randn(2, 4, 8, 8)
    results = []
    for each in (layer, plain, exact):
        rounded = {name: t.detach().to(types[name]) for name, t in plain.named_parameters()}
        handed = {name: t.to(torch.float64 if each is exact else t.dtype).requires_grad_() for name, t in rounded.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=each is not exact):
            y = torch.func.functional_call(each, handed, (x.double() if each is exact else x,))
        assert (type(y.grad_fn).__name__ == "ConvolutionBackward0") is (each is not layer)
        results.append([y.detach(), *torch.autograd.grad(y.sum(), list(handed.values()))])
    for name, made, same, true in zip(("y", *types), *results, strict=True):
        assert_parity(made, same, true, reduce_length=4 * 9 * 2 * 64, name=name)
