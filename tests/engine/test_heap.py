"""Whether a training step's memory stays with the process: pages that the system had to hand out, counted."""

import os
import subprocess
import sys

STEPS = 5
COUNT = f"""
import resource
import numpy as np, torch
import ganfast
from ganfast.data import Dataset

torch.set_num_threads(1)
images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
trainer = ganfast.Trainer("dcgan", Dataset("noise", {{"real": {{"real": images}}}}), batch=32, image_size=32, precision="fp32")
for _ in range(3):
    trainer.step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    trainer.step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / {STEPS})
"""


def faults(**variables: str) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run([sys.executable, "-c", COUNT], env=environment | variables, capture_output=True, text=True, check=True)
    return float(ran.stdout)


def test_a_step_asks_the_system_for_no_memory_that_the_last_one_had() -> None:
    # the critic's first map alone, 32 x 64 x 16 x 16 numbers, is 512 pages
    assert faults() < 512


def test_what_the_environment_says_about_memory_stands() -> None:
    assert faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 512
