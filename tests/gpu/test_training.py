"""The engine on a GPU: as on a CPU, exact on resuming, and without waiting for the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ganfast
from ganfast import recipes
from ganfast.data import Dataset, Sampler

pytestmark = pytest.mark.tier(5)


def data(name: str) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 1), dtype=np.uint8)
    if name == "cyclegan":
        return Dataset("pair", {"a": {"a": images[:40]}, "b": {"b": images[40:]}})
    return Dataset("noise", {"real": {"real": images, "labels": np.arange(64) % 4}})


def trainer(name: str, out: Path | None = None, **options: object) -> ganfast.Trainer:
    return ganfast.Trainer(name, data(name), batch=4, width=8, out=out, **options)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_are_the_hosts(channels_last: bool) -> None:
    """Bytes have one right answer: the same bits, whichever kernel gathers them."""
    images = np.random.default_rng(1).integers(0, 256, (50, 33, 31, 3), dtype=np.uint8)
    gpu, cpu = (
        Sampler(Dataset("noise", {"real": {"real": images}}), seed=3, device=device, flip=True, channels_last=channels_last)
        for device in ("cuda", "cpu")
    )
    assert gpu.resident
    for start in (0, 40):
        ours, theirs = (sampler.batch(start, 37, ("real",))["real"] for sampler in (gpu, cpu))
        assert torch.equal(ours.cpu(), theirs) and ours.stride() == theirs.stride()


@pytest.mark.parametrize("name", recipes.names())
def test_two_runs_and_a_resumed_one_are_equal(name: str, tmp_path: Path) -> None:
    straight, stopped = trainer(name, tmp_path / "a", device="cuda"), trainer(name, tmp_path / "b", device="cuda")
    for _ in range(4):
        straight.step()
    for _ in range(2):
        stopped.step()
    resumed = ganfast.Trainer.resume(stopped.save(), data=data(name))
    for _ in range(2):
        resumed.step()
    for network, module in straight.networks.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.networks[network].state_dict()[key]), f"{network}.{key}"


@pytest.mark.parametrize("name", ["gan", "dcgan", "wgan-gp", "sngan"])
def test_the_first_losses_are_the_cpus(name: str) -> None:
    """Data and weights agree; noise does not, because the two devices' generators differ: the real side's terms are compared."""
    cpu, gpu = trainer(name, device="cpu"), trainer(name, device="cuda", precision="fp32")
    ours, theirs = gpu.step()["D(real)"], cpu.step()["D(real)"]
    # one critic update at most lies between the weights of the two: float32 convolutions differ by 1e-5 relative at these sizes
    assert ours.item() == pytest.approx(theirs.item(), rel=5e-2, abs=5e-2)


@pytest.mark.parametrize("name", recipes.names())
def test_captured_iterations_are_the_eager_ones(name: str) -> None:
    """To the last bit: the same kernels, in the same order, on the same numbers."""
    captured, eager = trainer(name, device="cuda"), trainer(name, device="cuda", graphs=False)
    for step in range(8):
        ours, theirs = captured.step(), eager.step()
        assert ours.keys() == theirs.keys()
        for term, value in theirs.items():
            assert torch.equal(ours[term], value), f"iteration {step}: {term}"
    assert captured._recordings is not None and captured._recordings.reason == ""
    for network, module in captured.networks.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, eager.networks[network].state_dict()[key]), f"{network}.{key}"


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", recipes.names())
def test_a_step_never_waits_for_the_device(name: str, graphs: bool) -> None:
    training = trainer(name, device="cuda", graphs=graphs)
    for _ in range(4):
        training.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", recipes.names())
def test_an_update_that_is_not_finite_is_skipped_on_the_device(name: str) -> None:
    training = trainer(name, device="cuda", graphs=False)  # a recording would not see the hook
    training.step()
    network = training.recipe.phases[0].updates[0]
    parameter = next(training.networks[network].parameters())
    before = {key: value.clone() for key, value in training.networks[network].state_dict().items()}
    handle = parameter.register_hook(lambda gradient: gradient * torch.nan)
    training.step()
    handle.remove()
    torch.cuda.synchronize()
    assert training.skipped >= 1
    after = training.networks[network].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key and "num_batches" not in key)


def test_bf16_is_the_default_and_trains() -> None:
    training = trainer("wgan-gp", device="cuda")
    assert training.precision == torch.bfloat16
    assert all(value.isfinite() for value in training.step().values())
    assert training.sample(3).shape == (3, 32, 32, 1)
