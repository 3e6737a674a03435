"""Where an iteration of ganfast's goes, and how near its products come to the ceiling.

    python -m ganfast.benches.training.profile     # a table a recipe, at batch 32 in bfloat16, on an otherwise idle CPU

Times are what the operations take themselves, by PyTorch's profiler; what lies between them is the host's, in the last line.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from ganfast import tuning
from ganfast.benches import harness
from ganfast.benches.training.work import RECIPES, Work

STEPS, BATCH = 5, 32
CPU = torch.device("cpu")

KINDS = {
    "forward and input gradients by Winograd": r"ganfast::winograd_(transposed_)?convolve",
    "weight gradients by Winograd": r"ganfast::winograd_conv\w+_weight_gradient",
    "convolutions by tiles": r"ganfast::tiled_",
    "convolutions by oneDNN": r"aten::(mkldnn_|_)?convolution",
    "batch norm with its activation": r"ganfast::(batch_norm|normalise_act)",
    "spectral norm": r"ganfast::(spectral_norm|power_iteration)",
    "Adam and the moving average": r"ganfast::adam",
    "activations, sums, casts, all other": r".*",
}


def main() -> None:
    print(f"{tuning.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    ceiling = harness.matmul_ceiling(CPU, torch.bfloat16)
    print(f"A product of 2,048 x 2,048 x 2,048 in bfloat16: {ceiling / 1e9:.0f} GFLOP/s")
    for name in RECIPES:
        seconds, flops, elapsed = shares(Work.of(name, BATCH))
        print(f"\n| {name}, batch {BATCH} | ms | share | GFLOP/s, of the ceiling |\n| --- | --- | --- | --- |")
        for kind in KINDS:
            done = f"{flops[kind] / seconds[kind] / 1e9:.0f}, {flops[kind] / seconds[kind] / ceiling:.0%}" if flops[kind] else ""
            if seconds[kind]:
                print(f"| {kind} | {seconds[kind] * 1e3:.1f} | {seconds[kind] / elapsed:.0%} | {done} |")
        between = elapsed - sum(seconds.values())
        print(f"| between operations | {between * 1e3:.1f} | {between / elapsed:.0%} | |")


def shares(work: Work) -> tuple[Counter[str], Counter[str], float]:
    """Of one iteration: seconds by kind, multiplications and additions that products by Winograd do, and seconds of it all."""
    step = work.ours(torch.bfloat16, CPU).step
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        elapsed = time.perf_counter() - began
    seconds: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for event in profiled.key_averages(group_by_input_shape=True):
        kind = next(kind for kind, names in KINDS.items() if re.match(names, event.key))
        seconds[kind] += event.self_cpu_time_total / 1e6 / STEPS
        if event.key.startswith("ganfast::winograd"):
            flops[kind] += event.count / STEPS * multiplied(event.key, event.input_shapes)
    return seconds, flops, elapsed / STEPS


def multiplied(operation: str, shapes: list[list[int]]) -> float:
    """2 x the multiplications of one call in bfloat16: 9 instead of 16 for 4 x 4 taps with stride 2, 16 instead of 36 for 3 x 3.

    Weight gradients of 4 x 4 taps take 25 instead of 64 where maps have 96 tiles of 4 x 4 pixels (csrc/cpu/winograd.cpp).
    """
    one, other = shapes[:2]
    gradient = operation.endswith("weight_gradient")
    if gradient:
        small, big = sorted((one, other), key=lambda shape: shape[2])
        channels, taps = big[1], (4 if big[2] == 2 * small[2] else 3)
    else:
        taps = other[2]
        shrunk = 1 if taps == 3 or "transposed" in operation else 2
        small = [one[0], other[0], one[2] // shrunk, one[3] // shrunk]
        channels = other[1]
    large = gradient and small[2] % 4 == small[3] % 4 == 0 and small[0] * small[2] * small[3] >= 16 * 96
    share = {4: 25 / 64 if large else 9 / 16, 3: 16 / 36}[taps]
    return 2.0 * math.prod(small) * channels * taps**2 * share


if __name__ == "__main__":
    main()
