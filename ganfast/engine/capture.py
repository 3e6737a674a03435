"""Iterations as CUDA graphs: what a GPU was told once is told again by one call.

An iteration is a function of tensors alone: weights, moments, step sizes, the numbers of the rows that it reads, and the state of
the random generators, all of which stand where they stood. So one recording serves every later iteration in which the same phases
run; there is one for each such kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

WARM = 2  # iterations of a kind that run as they are first: kernels are chosen and compiled then, and optimizers make their state

Logs = dict[str, Tensor]
Body = Callable[[Sequence[Tensor]], Logs]


class Recording(NamedTuple):
    places: Sequence[Tensor]  # where inputs are put
    names: Sequence[str]
    values: Tensor  # (names,)
    fill: Callable[[], None]


class Recorder(Protocol):
    """Runs a function so that it can be run again, with the same tensors in the same places."""

    def warm(self, call: Callable[[], Logs]) -> Logs:
        """The function, run as it is, where it will be recorded."""

    def record(self, call: Callable[[], Logs]) -> tuple[Logs, Callable[[], None]]:
        """What the function returned, which holds nothing yet, and what fills it.

        Raises RuntimeError for what cannot be recorded.
        """


class CudaRecorder:
    """CUDA graphs, in memory that they share: they run one after another."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, call: Callable[[], Logs]) -> Logs:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            logs = call()
        current.wait_stream(self._stream)
        for value in logs.values():
            value.record_stream(current)
        return logs

    def record(self, call: Callable[[], Logs]) -> tuple[Logs, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the backward pass has a thread of its own, and so may somebody's data loader
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logs = call()
        return logs, graph.replay


class Recordings:
    """Runs iterations: the first of each kind as they are, then by what was recorded of them.

    What cannot be recorded runs as it is, after one warning; ``reason`` says why, and is empty where nothing is wrong.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: dict[Hashable, int] = {}
        self._known: dict[Hashable, Recording] = {}
        self.reason = ""

    def forget(self) -> None:
        """To be called where tensors were replaced: a recording knows them by their places."""
        self._known.clear()
        self._seen.clear()

    def run(self, kind: Hashable, body: Body, inputs: Sequence[Tensor]) -> Logs:
        """``body(inputs)``: scalars by name, which nothing later changes."""
        seen = self._seen.get(kind, 0)
        self._seen[kind] = seen + 1
        if self.reason:
            return body(inputs)
        if seen < WARM:
            return self._recorder.warm(lambda: body(inputs))
        if kind not in self._known:
            try:
                self._known[kind] = self._recorded(body, inputs)
            except RuntimeError as error:
                self.reason = str(error).strip().partition("\n")[0]
                self.forget()
                warnings.warn(f"iterations run without a CUDA graph, slower: {self.reason}", RuntimeWarning, stacklevel=2)
                return body(inputs)
        known = self._known[kind]
        for place, new in zip(known.places, inputs, strict=True):
            place.copy_(new)
        known.fill()
        return dict(zip(known.names, known.values.clone().unbind(), strict=True))

    def _recorded(self, body: Body, inputs: Sequence[Tensor]) -> Recording:
        places, names = [tensor.clone() for tensor in inputs], list[str]()

        def call() -> Logs:
            logs = body(places)
            names.extend(logs)
            return {"logs": torch.stack(list(logs.values()))}

        logs, fill = self._recorder.record(call)
        return Recording(places, names, logs["logs"], fill)
