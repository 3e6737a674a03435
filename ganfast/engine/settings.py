"""What the engine can be told, whatever the recipe. The command's options are made from these fields."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from ganfast.errors import InvalidType, InvalidValue, Unavailable, near

EVALUATE_EVERY = 50.0  # kimg: of the fastest recipe, an MLP on two CPU cores, scoring then takes up to a tenth of the time


@dataclass(frozen=True)
class Settings:
    batch: Annotated[int, "samples per pass"] = 64
    accumulate: Annotated[int, "passes of a batch whose gradients are added up before an update"] = 1
    seed: Annotated[int, "everything random follows from it"] = 0
    device: Annotated[str, "auto takes a GPU where there is one; cpu, cuda, cuda:1"] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], "auto is bf16 on a GPU that has it, fp32 otherwise"] = "auto"
    flip: Annotated[bool, "mirror half of the images left to right"] = False
    decay: Annotated[Literal["none", "linear"], "step sizes fall to zero over the second half of the run"] = "none"
    decay_steps: Annotated[
        int, "the iteration at which they reach zero; 0 is the length of the run, where that is known beforehand"
    ] = 0
    graphs: Annotated[bool, "on a GPU: record an iteration once as a CUDA graph, and replay it"] = True
    log_every: Annotated[int, "iterations between rows of the log; 0 makes about 200"] = 0
    tick_every: Annotated[int, "iterations between sample pictures; 0 makes 20"] = 0
    checkpoint_every: Annotated[int, "iterations between checkpoints; 0 saves with each sample picture"] = 0
    keep: Annotated[int, "checkpoints kept"] = 2
    eval_metrics: Annotated[str, "scores: fid,fid-infinity,kid,prdc,is; checkpoints/best is the best by the first one"] = ""
    eval_every_kimg: Annotated[float, "thousands of images between them; 0 is 50 where metrics are named, otherwise never"] = 0.0
    eval_n: Annotated[int, "samples they are taken of"] = 2000
    eval_network: Annotated[str, "whose features they compare: fashion-cnn, efficientnet-lite0, inception-2015"] = "fashion-cnn"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, _hints()[field.name], getattr(self, field.name))
        least = {
            "batch": 1,
            "accumulate": 1,
            "seed": 0,
            "decay_steps": 0,
            "log_every": 0,
            "tick_every": 0,
            "checkpoint_every": 0,
            "keep": 1,
            "eval_every_kimg": 0,
            "eval_n": 2,
        }
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InvalidValue(f"{name}: expected at least {bound}, got {getattr(self, name)}")

    @property
    def evaluates(self) -> str:
        """The metrics that samples are scored by during training; empty where they are not."""
        return self.eval_metrics or ("fid" if self.eval_every_kimg else "")

    @property
    def evaluates_every(self) -> float:
        """kimg between scores."""
        return self.eval_every_kimg or EVALUATE_EVERY

    @staticmethod
    def of(recipe_defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
        """Settings from a recipe's wishes, overridden by what was given. Raises for unknown names and wrong types."""
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in (*recipe_defaults, *given):
            if name not in known:
                raise InvalidValue(f"the engine has no setting {name!r}{near(name, known)}")
        return Settings(**{**recipe_defaults, **given})


def _hints() -> dict[str, Any]:
    return {name: hint.__args__[0] for name, hint in typing.get_type_hints(Settings, include_extras=True).items()}


def _check_type(name: str, hint: Any, value: Any) -> None:
    choices = typing.get_args(hint)
    kinds = (type(choices[0]),) if choices else (int, float) if hint is float else (hint,)
    if not isinstance(value, kinds) or isinstance(value, bool) != (hint is bool):
        raise InvalidType(f"{name}: expected {kinds[-1].__name__}, got {value!r}")
    if choices and value not in choices:
        raise InvalidValue(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` means. Raises Unavailable for a GPU that is not there, InvalidValue for no device at all."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidValue(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidValue(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Unavailable(
            f"device {name!r} was asked for and PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that convolutions and matrix products run in; parameters, statistics and losses stay float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
