"""Options that several recipes share: each is declared and explained once, and typed options of the command come from here."""

from __future__ import annotations

from typing import Annotated, Literal

ImageSize = Annotated[int, "pixels a side; taken from the data unless given; 0 for points"]
Channels = Annotated[int, "1 grey, 3 colour; coordinates where the data are points"]
Classes = Annotated[int, "number of labels; taken from the data"]
LatentDim = Annotated[int, "length of the noise vector z"]
Width = Annotated[int, "channels (or units) of the networks; 0 takes the architecture's usual width"]
CriticSteps = Annotated[int, "critic updates per generator update"]
Architecture = Annotated[
    Literal["auto", "mlp", "dcgan", "cnn", "resnet"], "networks; auto is the paper's for images and mlp for points"
]
Norm = Annotated[Literal["none", "layer"], "normalisation in the critic; batch norm would tie samples together"]
LearningRate = Annotated[float, "the optimizer's step size, both networks"]
Ema = Annotated[float, "decay per iteration of the generator's moving average; 0 for none"]
