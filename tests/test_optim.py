"""The optimizer against PyTorch's Adam: the same numbers, the same state, in whatever a training script does with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ganfast import optim
from ganfast.optim import Adam

DOUBLE = torch.float64
SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.5, 0.9)}


def network(dtype: torch.dtype = DOUBLE) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2, bias=False)).to(dtype)


def twins(dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, nn.Module]:
    ours = network(dtype)
    return ours, copy.deepcopy(ours)


def backward(*networks: nn.Module, seed: int = 0) -> None:
    """The same gradients for each."""
    for net in networks:
        torch.manual_seed(seed)
        for p in net.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, dtype=DOUBLE))


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # roundings of numbers of size one


@pytest.fixture
def steps_by_op(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each call of the op had; there is always a kernel."""
    calls: list[int] = []

    def counted(*arguments: Any) -> None:
        calls.append(len(arguments[0]))
        op(*arguments)

    op = optim.adam_
    monkeypatch.setattr(optim, "adam_", counted)
    monkeypatch.setattr(optim, "served", lambda device: True)
    return calls


def test_it_steps_as_pytorchs_does_in_one_call(steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS)
    for seed in range(5):
        backward(ours, theirs, seed=seed)
        adam.step()
        torchs.step()
        assert_same(ours, theirs)
    assert steps_by_op == [5] * 5


def test_each_takes_over_where_the_other_stopped(steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS, fused=True)
    for seed in range(4):
        backward(ours, theirs, seed=seed)
        adam.step()
        torchs.step()
        state, other = adam.state_dict(), torchs.state_dict()
        assert state["param_groups"] == other["param_groups"]
        for mine, yours in zip(state["state"].values(), other["state"].values(), strict=True):
            assert [(k, v.shape, v.dtype) for k, v in mine.items()] == [(k, v.shape, v.dtype) for k, v in yours.items()]
        adam.load_state_dict(copy.deepcopy(other))
        torchs.load_state_dict(copy.deepcopy(state))
        assert_same(ours, theirs)
    assert len(steps_by_op) == 4


def test_layouts_may_change_between_steps(steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS, foreach=False)
    for seed, layout in enumerate([torch.channels_last, torch.contiguous_format, torch.channels_last]):
        ours.to(memory_format=layout)  # type: ignore[call-overload]
        backward(ours, theirs, seed=seed)
        ours[0].weight.grad = ours[0].weight.grad.contiguous()
        adam.step()
        torchs.step()
        assert_same(ours, theirs)
        assert ours[0].weight.is_contiguous(memory_format=layout)
    assert len(steps_by_op) == 3


def test_parameters_have_a_count_of_their_own(steps_by_op: list[int]) -> None:
    """One without a gradient stays as it is, and its first step comes later."""
    ours, theirs = twins()
    groups = [[{"params": net[0].parameters()}, {"params": net[3].parameters(), "lr": 0.1}] for net in (ours, theirs)]
    adam, torchs = Adam(groups[0], **SETTINGS), torch.optim.Adam(groups[1], **SETTINGS)
    for seed in range(3):
        backward(ours, theirs, seed=seed)
        if seed == 0:
            ours[0].weight.grad = theirs[0].weight.grad = None
        adam.step()
        torchs.step()
        assert_same(ours, theirs)
    assert steps_by_op == [1, 1, 2, 1, 2, 1]


def test_two_types_are_two_calls(steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    for net in (ours, theirs):
        net[3].float()
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS)
    backward(ours, theirs)
    adam.step()
    torchs.step()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert steps_by_op == [4, 1]


LEFT: dict[str, dict[str, Any]] = {
    "weight decay": {"weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "not fused": {"fused": False},
    "bfloat16": {},
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_op_has_not_is_pytorchs_own(name: str, steps_by_op: list[int]) -> None:
    ours, theirs = twins(torch.bfloat16 if name == "bfloat16" else DOUBLE)
    settings = {"fused": True, **SETTINGS, **LEFT[name]}
    adam, torchs = Adam(ours.parameters(), **settings), torch.optim.Adam(theirs.parameters(), **settings)
    for seed in range(3):
        backward(ours, theirs, seed=seed)
        adam.step()
        torchs.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert steps_by_op == []


def test_a_parameter_may_have_gaps(steps_by_op: list[int]) -> None:
    memory = torch.arange(10, dtype=DOUBLE)
    ours, theirs = nn.Parameter(memory[::2]), nn.Parameter(memory[::2].clone())
    adam, torchs = Adam([ours], **SETTINGS), torch.optim.Adam([theirs], **SETTINGS, foreach=False)
    for p, optimizer in ((ours, adam), (theirs, torchs)):
        p.grad = torch.ones(5, dtype=DOUBLE)
        optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(memory[1::2], torch.arange(1, 10, 2, dtype=DOUBLE))
    assert steps_by_op == []


def test_a_loss_scaler_is_served(steps_by_op: list[int]) -> None:
    ours, theirs = twins(torch.float32)
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS, fused=True)
    for net, optimizer in ((ours, adam), (theirs, torchs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(net(torch.ones(2, 3, 4, 4)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_found_inf_stops_everything_but_averages(steps_by_op: list[int]) -> None:
    ours, before = twins(torch.float32)
    adam = Adam(ours.parameters(), **SETTINGS)
    backward(ours)
    averages = {p: torch.zeros_like(p) for p in ours.parameters()}
    for shape in ((), (1,)):
        adam.found_inf = torch.ones(shape)  # type: ignore[attr-defined]
        adam.follow(dict(averages), 0.5)
        adam.step()
    assert all(map(torch.equal, ours.parameters(), before.parameters()))
    assert [state["step"].item() for state in adam.state.values()] == [0] * 5
    for p, average in averages.items():
        torch.testing.assert_close(average, 0.75 * p.detach())
    adam.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    adam.step()
    assert not any(map(torch.equal, ours.parameters(), before.parameters()))
    assert len(steps_by_op) == 3


def test_averages_move_once_and_those_left_are_told(steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    adam, torchs = Adam(ours.parameters(), **SETTINGS), torch.optim.Adam(theirs.parameters(), **SETTINGS)
    averages = {p: torch.zeros_like(p) for p in ours.parameters()}
    left = dict(averages)
    adam.follow(left, 0.25)
    for seed in range(2):
        backward(ours, theirs, seed=seed)
        adam.step()
        torchs.step()
        if seed == 0:
            expected = [0.25 * p.detach() for p in theirs.parameters()]
    assert left == {}
    for average, wanted in zip(averages.values(), expected, strict=True):
        torch.testing.assert_close(average, wanted)
    backward(ours)
    ours[0].weight.grad = None
    left = {ours[0].weight: averages[ours[0].weight]}
    adam.follow(left, 0.25)
    adam.step()
    assert list(left) == [ours[0].weight]


def with_closure(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 3, 4, 4, dtype=DOUBLE)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0


def with_schedule(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    for seed in range(3):
        backward(net, seed=seed)
        optimizer.step()
        schedule.step()


def with_tensor_lr(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    for seed in range(2):
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1**seed, dtype=DOUBLE)
        backward(net, seed=seed)
        optimizer.step()


USES: dict[str, Callable[[torch.optim.Optimizer, nn.Module], None]] = {
    "closure": with_closure,
    "schedule": with_schedule,
    "tensor lr": with_tensor_lr,
}


@pytest.mark.parametrize("name", USES)
def test_it_is_used_as_any_optimizer(name: str, steps_by_op: list[int]) -> None:
    ours, theirs = twins()
    USES[name](Adam(ours.parameters(), **SETTINGS), ours)
    USES[name](torch.optim.Adam(theirs.parameters(), **SETTINGS, fused=True), theirs)
    assert_same(ours, theirs)
    assert steps_by_op


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}], ids=["by op", "by PyTorch"])
def test_hooks_are_called_once(settings: dict[str, Any]) -> None:
    net = network()
    torch.optim.Adam(network().parameters())  # whose making puts hooks around PyTorch's own step
    adam, calls = Adam(net.parameters(), **settings), []
    adam.register_step_pre_hook(lambda *_: calls.append("before"))
    adam.register_step_post_hook(lambda *_: calls.append("after"))
    backward(net)
    adam.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))], ids=["copied", "pickled"])
def test_copies_go_on_alike(copied: Callable[[Any], Any], steps_by_op: list[int]) -> None:
    net = network()
    adam = Adam(net.parameters(), **SETTINGS)
    backward(net)
    adam.step()
    other, twin = copied((net, adam))
    backward(net, other, seed=1)
    adam.step()
    twin.step()
    assert_same(other, net)
    assert len(steps_by_op) == 3


def test_what_pytorchs_fused_kernel_refuses_is_pytorchs_other_ones() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    for parameter, kind in ((ours, Adam), (theirs, torch.optim.Adam)):
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
        kind([parameter], lr=0.1, foreach=True).step()
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert not Adam([ours], differentiable=True).param_groups[0]["fused"]


def test_complex_parameters_step() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, dtype=torch.complex64)) for _ in range(2))
    for parameter, kind in ((ours, Adam), (theirs, torch.optim.Adam)):
        parameter.grad = torch.full((3,), 1 + 1j)
        kind([parameter], lr=0.1).step()
    assert torch.allclose(ours, theirs, rtol=1e-6)
