"""Stock loops are the engine's maths, and what is said of both; nothing here is timed."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from ganfast.benches import harness, plot
from ganfast.benches.plot import read
from ganfast.benches.training import agreement, floor, memory, page, stock, suite, work
from ganfast.benches.training.networks import pair
from ganfast.benches.training.profile import multiplied
from ganfast.benches.training.stock import Mode
from ganfast.benches.training.work import RECIPES, Work
from ganfast.cli import ganfast as command
from ganfast.errors import InvalidValue, NotWritable
from ganfast.recipe import Optimizer, Recipe

CPU = torch.device("cpu")
TINY = {"image_size": 16, "width": 8, "latent_dim": 16}


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam divides a gradient by its own size: with its usual eps of 1e-8 one that cancels to rounding errors moves its weight by
    a whole step either way, and PyTorch's two memory layouts part by 4e-5 within three iterations.
    """
    made = Work.recipe

    def recipe(given: Work) -> Recipe:
        found = made(given)
        optimizers = {name: Optimizer(o.kind, **{**o.settings, "eps": 1e-3}) for name, o in found.optimizers.items()}
        return dataclasses.replace(found, optimizers=optimizers)

    monkeypatch.setattr(Work, "recipe", recipe)


def tiny(name: str, critic_steps: int = 2) -> Work:
    return Work(name, 4, critic_steps, {**RECIPES[name], **TINY})


@pytest.mark.parametrize("name", RECIPES)
def test_stock_and_engine_have_the_same_losses(name: str) -> None:
    """Weights, images, noise, interpolations, optimizers, power iterations and the order of it all, or they would part."""
    ours, others = agreement.differences(tiny(name), torch.float32, CPU, steps=3)
    assert ours.keys() == others.keys() >= {"critic/adversarial", "generator/adversarial"}
    assert ("critic/penalty" in ours) == (name == "wgan-gp")
    for difference in (*ours.values(), *others.values()):
        # float32's 6e-8 in sums of hundreds of terms
        assert difference < 5e-6


@pytest.mark.parametrize(
    ("name", "mode"), [("wgan-gp", Mode(one_batch=True)), ("sngan", Mode(channels_last=True, one_batch=True))]
)
def test_one_batch_is_the_same_maths(name: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "Mode", lambda dtype, channels_last: mode)
    ours, _ = agreement.differences(tiny(name), torch.float32, CPU, steps=3)
    assert max(ours.values()) < 5e-6  # as above


@pytest.mark.parametrize("name", RECIPES)
def test_another_step_size_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(loop: stock.Loop, *arguments: Any, **more: Any) -> None:
        made(loop, *arguments, **more)
        for group in loop.adams[1].param_groups:
            group["lr"] *= 0.5

    made = stock.Loop.__init__
    monkeypatch.setattr(stock.Loop, "__init__", slower)
    ours, _ = agreement.differences(tiny(name), torch.float32, CPU, steps=3)
    assert max(ours.values()) > 2e-4


@pytest.mark.parametrize("name", RECIPES)
def test_the_averages_are_the_engines_too(name: str) -> None:
    tape: list[list[agreement.Given]] = []
    given = tiny(name)
    trainer = given.ours(torch.float32, CPU, agreement.recorded(given.recipe(), tape))
    loop = given.stock(Mode(), CPU)
    for _ in range(2):
        tape.append([])
        trainer.step()
        agreement.replayed(loop, tape[-1])
    ours, start = trainer.networks.G_ema.state_dict(), given.recipe().networks["G"].state_dict()
    compared = [key for key in start if key.endswith("running_mean") or start[key].dim() > 1]
    assert len(compared) > 4
    for key in compared:
        theirs = loop.average.state_dict()[key]
        # a few weights whose gradients cancel move either way, as above. Biases before batch norm all do: their gradient is zero
        assert (ours[key] - theirs).norm() < 0.02 * (theirs - start[key]).norm(), key


@pytest.mark.parametrize("channels_last", [False, True])
def test_stock_shows_every_image_once_an_epoch_and_mirrors_half(channels_last: bool) -> None:
    given = tiny("wgan-gp")
    loop = given.stock(Mode(channels_last=channels_last), CPU)
    images = torch.from_numpy(given.images()).permute(0, 3, 1, 2)
    real = torch.cat([loop.reals() for _ in range(work.IMAGES // given.batch)])
    assert real.shape == images.shape
    assert loop.reals().is_contiguous(memory_format=torch.channels_last) == channels_last
    pixels = ((real + 1) * 127.5).round().to(torch.uint8)
    seen = {bytes(image.contiguous().numpy().tobytes()) for image in pixels}
    straight = {image.contiguous().numpy().tobytes() for image in images}
    turned = {image.flip(2).contiguous().numpy().tobytes() for image in images}
    assert len(seen) == work.IMAGES and seen <= straight | turned
    # a fair coin 2048 times: six standard deviations are 136
    assert abs(len(seen & straight) - work.IMAGES / 2) < 136


def test_a_generators_step_leaves_the_critic_as_it_was() -> None:
    loop = tiny("sngan").stock(Mode(), CPU)
    before = {name: value.clone() for name, value in loop.D.state_dict().items()}
    weights = [parameter.clone() for parameter in loop.G.parameters()]
    loop.generator(loop.noise())
    assert all(torch.equal(value, before[name]) for name, value in loop.D.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(weights, loop.G.parameters(), strict=True))
    loop.critic(loop.reals(), loop.noise())
    moved = [name for name, value in loop.D.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.endswith("_u") for name in moved) and any(name.endswith("original") for name in moved)


def test_every_combination_is_a_mode_and_has_a_name_of_its_own() -> None:
    on_cpu, on_gpu = (list(stock.modes("dcgan", torch.device(device))) for device in ("cpu", "cuda"))
    assert len(on_cpu) == len(set(map(str, on_cpu))) == 8
    assert set(on_gpu) - set(on_cpu) == {
        dataclasses.replace(mode, compiled="reduce-overhead") for mode in on_cpu if mode.compiled
    }
    assert len(list(stock.modes("sngan", CPU))) == 16
    assert str(Mode(torch.bfloat16, True, "default")) == "torch compiled channels-last bfloat16"


def test_the_modes_near_the_fastest_are_taken_and_the_fastest_in_float32() -> None:
    half, whole = [[Mode(dtype, channels_last) for channels_last in (True, False)] for dtype in (torch.bfloat16, torch.float32)]
    seconds = dict(zip((*half, *whole), (1.1, 1.0, 5.0, 4.0), strict=True))
    assert suite.fastest(seconds) == [half[1], half[0], whole[1]]
    assert suite.fastest({**seconds, half[0]: 1.3}) == [half[1], whole[1]]
    assert suite.fastest({**seconds, whole[0]: 0.5}) == [whole[0]]
    assert suite.fastest({half[0]: 1.0}) == [half[0]]


def test_products_of_a_forward_pass() -> None:
    """PyTorch counts those of dcgan; of the ResNets they are what shapes and merged layers say."""
    recipe = tiny("dcgan").recipe()
    counted = []
    for network, sample in zip(pair(recipe), (torch.zeros(1, 16), torch.zeros(1, 3, 16, 16)), strict=True):
        network.eval()
        with FlopCounterMode(display=False) as counter:
            network(sample)
        counted.append(counter.get_total_flops())
    assert floor.flops(recipe) == tuple(counted)
    # at 16 x 16, width 8: 3 x 3 from 3 to 8, 4 x 4 by 8 x 8 from 8 to 8, 1 x 1 from 3 to 8; four of 3 x 3 at 8 x 8; the head
    critic = 256 * 3 * 8 * 9 + 64 * 8 * 8 * 16 + 64 * 3 * 8 + 4 * 64 * 8 * 8 * 9 + 8
    # from 16 numbers to 8 maps of 4 x 4; twice 4 x 4 and 1 x 1 from the smaller map, 3 x 3 on the larger; the last
    generator = 16 * 128 + sum(s * s * 64 * (16 + 4 * 9 + 1) for s in (4, 8)) + 256 * 8 * 3 * 9
    assert floor.flops(tiny("wgan-gp").recipe()) == (2 * generator, 2 * critic)


def test_the_floor_is_products_and_adam_at_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "matmul_ceiling", lambda *_: 1e6)
    monkeypatch.setattr(harness, "copy_ceiling", lambda _: 1e6)
    monkeypatch.setattr(floor, "flops", lambda _: (1e3, 1e2))
    recipe = tiny("wgan-gp").recipe()
    sizes = [sum(p.numel() for p in recipe.networks[name].parameters()) for name in "GD"]
    expected = 4 * (5 * (1e3 + 10e2) + 3e3 + 2e2) / 1e6 + 28 * (sizes[0] + 5 * sizes[1]) / 1e6
    assert floor.seconds(recipe, 4, 5, torch.float32, CPU) == pytest.approx(expected)


def test_memory_is_counted_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFAST_POOL_MB", "7")
    given = tiny("dcgan", 1)
    counted = memory.peak(given, Mode(), CPU)
    assert os.environ["GANFAST_POOL_MB"] == "7"
    # the critic's first map, of real and of generated images, must be there until its backward
    assert 2 * given.batch * 8 * 8 * 8 * 4 < counted < 100e6


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modes, five times; turns of 4, 2, 1 seconds for stock and ganfast, peaks of 4 and 1 MB, differences of 1e-3."""
    modes = [Mode(torch.bfloat16), Mode(torch.float32)]
    turns = {str(modes[0]): 2.0, str(modes[1]): 4.0, "ganfast float32": 2.0, "ganfast bfloat16": 1.0}
    monkeypatch.setattr(work, "RECIPES", {name: {**options, **TINY} for name, options in RECIPES.items()})
    monkeypatch.setattr(suite.stock, "modes", lambda *_: iter([*modes, Mode(compiled="default")]))
    monkeypatch.setattr(harness, "take_turns", lambda providers, *_: {name: [turns[name]] * 3 for name in providers})
    monkeypatch.setattr(suite.floor, "seconds", lambda *_: 0.5)
    monkeypatch.setattr(suite.memory, "peak", lambda _, provider, __: 4e6 if isinstance(provider, Mode) else 1e6)
    monkeypatch.setattr(suite.agreement, "differences", lambda *_: ({"critic/adversarial": 1e-3}, {"critic/adversarial": 2e-3}))
    clock = itertools.count()
    monkeypatch.setattr(suite.time, "perf_counter", lambda: next(clock))

    def refuse(function: Any = None, **_: Any) -> Any:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", refuse)


def test_the_table_has_its_columns_and_figures(made_up: None, tmp_path: Path) -> None:
    out, lines = tmp_path / "training.csv", []
    suite.check(out)
    suite.run(["sngan"], [4, 6], out, critic_steps=[1, 5], device=CPU, seconds=0.1, show=lines.append)
    rows = list(csv.DictReader(out.open()))
    assert tuple(rows[0]) == suite.FIELDS
    first, later = rows[:2], rows[2:]
    assert {row["bench"] for row in first} == {suite.FIRST_PASS}
    assert [row["provider"] for row in first] == ["torch bfloat16", "torch float32"]
    assert any("torch compiled float32 left out: no compiler" in line for line in lines)
    cases = [f"sngan-16 batch {batch}, {steps}" for batch in (4, 6) for steps in ("1 critic step", "5 critic steps")]
    assert list(dict.fromkeys(row["case"] for row in later)) == cases
    found = {(row["case"], row["provider"]): row for row in later}
    assert len(found) == len(later) == 4 * 4
    best = found[cases[0], "ganfast bfloat16"]
    assert (best["ratio"], best["against"], best["dtype"]) == ("2.0", "torch bfloat16", "bfloat16")
    assert (best["images_per_s"], best["times_floor"], best["peak_mb"], best["peak_share"]) == ("4.0", "2.0", "1.0", "0.25")
    assert (best["loss_difference"], best["stock_difference"]) == ("critic/adversarial=1.0e-03", "critic/adversarial=2.0e-03")
    assert found[cases[3], "ganfast float32"]["images_per_s"] == "15.0"  # 5 x 6 in two seconds
    assert found[cases[0], "torch float32"]["ratio"] == ""
    assert best["torch"] == torch.__version__ and best["device"] and best["commit"] and best["date"]
    (axes,) = plot.draw(plot.of_benches(plot.read(out), [suite.BENCH])).axes
    assert len(axes.patches) == len(later)


def test_what_cannot_be_benched_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke
    asked = run(command, ["bench", "training", "--recipes", "dcgan,sngn"])
    assert isinstance(asked.exception, InvalidValue) and "did you mean 'sngan'" in str(asked.exception)
    for batch in ("1", "32,many"):
        asked = run(command, ["bench", "training", "--batch", batch])
        assert isinstance(asked.exception, InvalidValue) and "expected whole numbers of at least 2" in str(asked.exception)
    (tmp_path / "notes.csv").write_text("a,b\n")
    with pytest.raises(InvalidValue, match=r"notes.csv is not a table of this bench"):
        suite.check(tmp_path / "notes.csv")
    with pytest.raises(NotWritable, match="cannot write"):
        suite.check(tmp_path / "nowhere" / "a.csv")


# ---- the pages


def test_the_tables_of_the_readme_and_of_the_page_are_those_of_the_figures() -> None:
    cases = read(page.TABLE)
    for place, table in page.PAGES.items():
        assert page.replaced(place.read_text(), table(cases)) == place.read_text()


def test_a_line_is_of_the_fastest_stock_mode_and_of_ganfast_in_bfloat16() -> None:
    columns = "provider", "dtype", "median_us", "ratio", "images_per_s", "times_floor", "peak_mb", "peak_share"
    rows = (
        ("torch bfloat16", "bfloat16", "2000", "", "16", "2", "30", ""),
        ("torch channels-last bfloat16", "bfloat16", "3000", "", "11", "3", "30", ""),
        ("torch float32", "float32", "6000", "", "5", "2", "60", ""),
        ("ganfast float32", "float32", "4000", "0.5", "8", "1.5", "40", "1.333"),
        ("ganfast bfloat16", "bfloat16", "1000", "2", "32", "1", "20", "0.667"),
    )
    cases = {("a CPU", suite.BENCH, "dcgan-64 batch 32"): {row[0]: dict(zip(columns, row, strict=True)) for row in rows}}
    assert page.short(cases).splitlines()[2:] == ["| dcgan-64 batch 32 | 2 | 1 | 2.00x |"]
    assert page.whole(cases).splitlines()[2:] == [
        "| dcgan-64 batch 32 | torch bfloat16 | 2 | 1 | 2.00x | 32 | 2.00, 1.00 | 20, 0.67 | 6, 4: 1.50x |"
    ]
    with pytest.raises(ValueError, match="expected <!--"):
        page.replaced("no comments", "a table")


def test_multiplications_by_winograds_algorithm() -> None:
    # 2 x 5 channels of 4 x 4 from 3 of 8 x 8: 16 taps, of which 9 remain; 36 of 3 x 3 taps become 16
    wide = 2.0 * (2 * 5 * 4 * 4) * 3 * 9
    assert multiplied("ganfast::winograd_convolve", [[2, 3, 8, 8], [5, 3, 4, 4]]) == wide
    assert multiplied("ganfast::winograd_transposed_convolve", [[2, 5, 4, 4], [5, 3, 4, 4]]) == wide
    assert multiplied("ganfast::winograd_convolution_weight_gradient", [[2, 5, 4, 4], [2, 3, 8, 8]]) == wide
    assert multiplied("ganfast::winograd_conv_norm_weight_gradient", [[2, 3, 8, 8], [2, 5, 4, 4]]) == wide
    many = multiplied("ganfast::winograd_convolution_weight_gradient", [[96, 5, 4, 4], [96, 3, 8, 8]])
    assert many == 2.0 * (96 * 5) * 3 * 100  # 4 phases of 25 products for a tile of 4 x 4
    assert multiplied("ganfast::winograd_convolve", [[2, 3, 8, 8], [5, 3, 3, 3]]) == pytest.approx(2 * (2 * 5 * 64) * 3 * 4)
