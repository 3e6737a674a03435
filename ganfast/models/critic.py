"""What every critic offers beside its score: the features that it judges by, for heads that share its trunk."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureCritic(nn.Module):
    """Samples -> scores in two parts: ``judge(features(x))``; ``feature_dim`` counts the values of a sample's features."""

    feature_dim: int

    def features(self, x: Tensor) -> Tensor:
        """What the critic judges by, (N, ...) of feature_dim values a sample."""
        raise NotImplementedError

    def judge(self, features: Tensor) -> Tensor:
        """Scores (N,), or logits (N, K), of features."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(self.features(x))
