"""One side of a comparison: what a feature network makes of a set of images, kept only as far as a metric needs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics.arrays import Array, tensor
from ganfast.metrics.feature_network import FeatureNetwork, Images
from ganfast.metrics.prdc import Manifold
from ganfast.metrics.statistics import FeatureStatistics

Need = Literal["statistics", "features", "logits"]


@dataclass(frozen=True)
class Side:
    """``n`` images by their features: ``statistics`` (mean and covariance), ``features`` (n, D) and ``logits`` (n, K) in float32.

    What no metric needs, or a file did not have, is None; so is ``n`` where a file does not tell it. ``told`` is what identifies
    the images, ready for JSON.
    """

    told: dict[str, Any]
    n: int | None
    statistics: FeatureStatistics | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    _manifolds: dict[int, Manifold] = field(default_factory=dict, repr=False)

    def manifold(self, k: int) -> Manifold:
        """The balls around its features, searched once: in training the real side is asked again and again."""
        assert self.features is not None
        if k not in self._manifolds:
            self._manifolds[k] = Manifold.of(self.features, k, name=self.told["name"])
        return self._manifolds[k]

    def counted(self, need: Need) -> int | None:
        """How many images that is of."""
        return len(self.logits) if need == "logits" and self.logits is not None else self.n

    @property
    def width(self) -> int:
        """D; 0 where neither statistics nor features are there."""
        if self.features is not None:
            return self.features.shape[1]
        return 0 if self.statistics is None else self.statistics.width

    @property
    def has(self) -> frozenset[Need]:
        parts: dict[Need, Any] = {"statistics": self.statistics, "features": self.features, "logits": self.logits}
        return frozenset(name for name, part in parts.items() if part is not None)


def extracted(
    network: FeatureNetwork, chunks: Iterable[Images], needs: frozenset[Need], told: dict[str, Any], *, n: int | None = None
) -> Side:
    """The side that images (k, H, W, C) uint8 are, which come some at a time and are seen once.

    Logits are of all of them, statistics and features of all or of the first ``n``. For statistics alone memory is bounded,
    whatever their number. Raises InvalidValue where the network has no logits.
    """
    statistics, features, logits, count = FeatureStatistics(), [], [], 0
    for images in chunks:
        made = network(images, str(told.get("name", "images")))
        within = made.features if n is None else made.features[: max(0, n - count)]
        count += len(images)
        if "statistics" in needs:
            statistics.update(within)
        if "features" in needs:
            features.append(within)
        if "logits" in needs:
            if made.logits is None:
                raise InvalidValue(f"{network.name} has no logits, which an inception score is made of: choose another network")
            logits.append(made.logits)
    return Side(
        told,
        count if n is None else n,
        statistics if "statistics" in needs else None,
        torch.cat(features) if features else None,
        torch.cat(logits) if logits else None,
    )


def of_features(features: Array, told: dict[str, Any]) -> Side:
    """The side that features (n, D) are. Raises InvalidType and InvalidValue for anything else."""
    statistics = FeatureStatistics()
    statistics.update(features)
    return Side(told, len(features), statistics, tensor(features).float())
