"""Recorded iterations, by a recorder that replays operations on the CPU as CUDA graphs do on a GPU. None of it has run on one;
tests/gpu has the same tests for there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tape import TapeRecorder
from torch import Tensor

from ganfast import recipes
from ganfast.data import Dataset
from ganfast.engine.capture import WARM, Recordings
from ganfast.engine.randomness import seeded
from ganfast.engine.trainer import Trainer

# Three channels where a penalty is: one channel lies in two layouts at once, and a sum of gradients has the one or the other by
# whether autograd may add in place, which it may not to what a tape holds; PyTorch's convolutions round by the layout.
SIZES: dict[str, dict[str, Any]] = {
    "gan": {"image_size": 8, "channels": 1, "width": 8},
    "dcgan": {"image_size": 8, "channels": 1, "width": 4},
    "wgan-gp": {"image_size": 8, "channels": 3, "width": 4, "critic_steps": 2, "penalty_every": 3},
    "sngan": {"image_size": 8, "channels": 1, "width": 4, "critic_steps": 2},
    "cgan": {"image_size": 8, "channels": 1, "width": 8, "classes": 4},
    "infogan": {"image_size": 8, "channels": 1, "width": 4},
    "cyclegan": {"image_size": 16, "channels": 1, "width": 4, "pool": 3},
}


def data(name: str) -> Dataset:
    rng, size = np.random.default_rng(0), SIZES[name]["image_size"]
    channels = SIZES[name]["channels"]
    images = rng.integers(0, 256, (23, size, size, channels), dtype=np.uint8)
    if name == "cyclegan":
        return Dataset("pair", {"a": {"a": images[:9]}, "b": {"b": images[9:]}})
    return Dataset("noise", {"real": {"real": images, "labels": np.arange(23) % 4}})


def trainer(name: str, recorder: TapeRecorder | None, **settings: Any) -> Trainer:
    """As on a GPU: the data lie on the device, and nothing waits for it."""
    with seeded(torch.device("cpu"), 0):
        recipe = recipes.get(name, **SIZES[name])
    made = Trainer(recipe, data(name), **{"batch": 4, "flip": True, "seed": 5, **settings})
    made._sampler.make_resident()
    made._stay_on_device(recorder)
    return made


def state(made: Trainer) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for name, net in made.networks.items() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", SIZES)
def test_recorded_iterations_are_those_that_ran_as_they_are(name: str) -> None:
    """To the last bit: weights, averages, buffers and losses, while step sizes and the averages' decay change."""
    settings = {"decay": "linear", "decay_steps": 12, "accumulate": 2 if name == "dcgan" else 1}
    recorder = TapeRecorder()
    recorded, plain = trainer(name, recorder, **settings), trainer(name, None, **settings)
    for step in range(10):
        ours, theirs = recorded.step(), plain.step()
        assert ours.keys() == theirs.keys()
        for term in theirs:
            # autograd copies a gradient that a tape holds too, into another layout, where its squares are added in another order
            equal = torch.isclose(ours[term], theirs[term], rtol=1e-6) if "grad_norm" in term else ours[term] == theirs[term]
            assert equal, f"iteration {step}: {term}"
    # one for each set of phases that run together
    assert len(recorder.recorded) == (2 if name == "wgan-gp" else 1)
    theirs = state(plain)
    for key, value in state(recorded).items():
        assert torch.equal(value, theirs[key]), key


def test_every_recipe_of_images_is_recorded() -> None:
    assert set(SIZES) == set(recipes.names()) - {"wgan"}, "wgan's RMSprop takes a step size on the device on CUDA alone"


def test_what_a_step_returned_stays() -> None:
    made = trainer("dcgan", TapeRecorder())
    kept = [made.step()["critic/adversarial"] for _ in range(WARM + 3)]
    before = [value.clone() for value in kept]
    made.step()
    assert all(map(torch.equal, kept, before))
    assert len({value.item() for value in kept}) == len(kept)


def test_a_state_that_was_loaded_is_gone_on_from(tmp_path: Path) -> None:
    """An optimizer has new tensors then: a recording of the old ones would train what nobody sees."""
    straight, resumed = (
        trainer("dcgan", TapeRecorder()),
        trainer(
            "dcgan",
            TapeRecorder(),
        ),
    )
    straight.out = resumed.out = tmp_path
    for _ in range(WARM + 2):
        straight.step()
    straight.save()
    for _ in range(2):
        straight.step()
    for _ in range(WARM + 1):  # has recorded something of its own by then
        resumed.step()
    resumed.load_newest(pytest.fail)
    for _ in range(2):
        resumed.step()
    theirs = state(straight)
    for key, value in state(resumed).items():
        assert torch.equal(value, theirs[key]), key


def test_weights_that_move_elsewhere_are_recorded_anew() -> None:
    recorder = TapeRecorder()
    moved, plain = trainer("dcgan", recorder), trainer("dcgan", None)
    for step in range(2 * WARM + 3):
        if step == WARM + 1:
            for parameter in moved.networks.G.parameters():
                parameter.data = parameter.data.clone()
        moved.step(), plain.step()
    assert len(recorder.recorded) == 2
    theirs = state(plain)
    assert all(torch.equal(value, theirs[key]) for key, value in state(moved).items())


def test_a_batch_that_is_not_finite_is_skipped_by_the_recording_too() -> None:
    made, bad = trainer("dcgan", TapeRecorder()), torch.zeros(())
    loss = made.recipe.phases[0].loss

    def poisoned(networks: Any, batch: Any) -> Any:
        terms = loss(networks, batch)
        return {name: value + bad for name, value in getattr(terms, "minimise", terms).items()}

    object.__setattr__(made.recipe.phases[0], "loss", poisoned)
    for _ in range(WARM + 1):
        made.step()
    before = state(made)
    bad.fill_(torch.nan)
    made.step()
    assert made.skipped == 1
    after = state(made)
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("D."))
    assert any(not torch.equal(value, after[key]) for key, value in before.items() if key.startswith("G."))
    bad.zero_()
    made.step()
    assert made.skipped == 1 and all(value.isfinite().all() for value in state(made).values())


def test_a_look_at_a_value_is_said_once_and_training_goes_on() -> None:
    made, plain = trainer("dcgan", TapeRecorder()), trainer("dcgan", None)
    loss = made.recipe.phases[1].loss

    def looking(networks: Any, batch: Any) -> Any:
        assert networks.G(**batch).mean().item() < 2
        return loss(networks, batch)

    object.__setattr__(made.recipe.phases[1], "loss", looking)
    plain_loss = plain.recipe.phases[1].loss
    object.__setattr__(
        plain.recipe.phases[1], "loss", lambda networks, batch: (networks.G(**batch), plain_loss(networks, batch))[1]
    )
    for step in range(WARM + 3):
        if step == WARM:
            with pytest.warns(RuntimeWarning, match="iterations run without a CUDA graph, slower: .*_local_scalar_dense"):
                made.step()
        else:
            made.step()
        plain.step()
    assert made._recordings is not None and "_local_scalar_dense" in made._recordings.reason
    theirs = state(plain)
    assert all(torch.equal(value, theirs[key]) for key, value in state(made).items())


def test_a_recording_reads_its_inputs() -> None:
    recordings = Recordings(TapeRecorder())

    def body(tensors: Any) -> dict[str, Tensor]:
        return {"twice": tensors[0] * 2, "sum": tensors[0] + tensors[1]}

    for value in range(6):
        logs = recordings.run("kind", body, [torch.tensor(float(value)), torch.tensor(1.0)])
        assert logs["twice"].item() == 2 * value and logs["sum"].item() == value + 1


def test_kinds_are_recorded_apart() -> None:
    recorder = TapeRecorder()
    recordings = Recordings(recorder)
    bodies: dict[str, Callable[[Any], dict[str, Tensor]]] = {
        "double": lambda tensors: {"y": tensors[0] * 2},
        "square": lambda tensors: {"y": tensors[0] * tensors[0]},
    }
    for value in range(5):
        for kind, body in bodies.items():
            y = recordings.run(kind, body, [torch.tensor(float(value))])["y"].item()
            assert y == (2 * value if kind == "double" else value**2)
    assert len(recorder.recorded) == 2
