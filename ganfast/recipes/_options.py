"""Options that several recipes share: each is declared and explained once, and typed options of the command come from here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True)
class Between:
    """The values that a number may have, both ends included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"


ImageSize = Annotated[int, "pixels a side; taken from the data unless given; 0 for points", Between(0)]
Channels = Annotated[int, "1 grey, 3 colour; coordinates where the data are points", Between(1)]
Classes = Annotated[int, "number of labels; taken from the data", Between(0)]
LatentDim = Annotated[int, "length of the noise vector z", Between(1)]
Width = Annotated[int, "channels (or units) of the networks; 0 takes their usual width", Between(0)]
CriticSteps = Annotated[int, "critic updates per generator update", Between(1)]
Architecture = Annotated[
    Literal["auto", "mlp", "dcgan", "cnn", "resnet"], "networks; auto is convolutional for images and mlp for points"
]
Norm = Annotated[Literal["none", "layer"], "normalisation in the critic; batch norm would tie samples together"]
LearningRate = Annotated[float, "the optimizer's step size, both networks", Between(0)]
Ema = Annotated[float, "decay per iteration of the generator's moving average; 0 for none", Between(0, 0.999999)]
