from typing import Any

import numpy as np
from numpy.typing import NDArray

def permuted(start: int, count: int, n: int, seed: int, stream: int) -> NDArray[np.int64]: ...
def flips(start: int, count: int, seed: int, stream: int) -> NDArray[np.bool_]: ...
def gather_images(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    flipped: NDArray[np.bool_],
    out: NDArray[np.float32],
    channels_last: bool,
) -> None: ...
def build_info() -> dict[str, Any]: ...
