"""Running mean and standard deviation."""

import torch as th
from torch import nn


class RunningMoments(nn.Module):
    """
    Mean and variance of a stream of batches: exact over the first batches, then a moving average, to follow a
    distribution that drifts.

    :param dim: number of columns
    :param min_weight: minimum weight of a new batch; the memory is about ``1 / min_weight`` batches
    :param std_floor: smallest standard deviation of a column that is not taken as constant; constant columns are not scaled
    :param device: PyTorch device
    """

    mean: th.Tensor
    var: th.Tensor
    std: th.Tensor
    """Standard deviation ``(dim,)``; 1 where a column is constant."""
    n_batches: th.Tensor

    def __init__(
        self, dim: int, *, min_weight: float = 0.01, std_floor: float = 1e-6, device: th.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.min_weight = min_weight
        self.std_floor = std_floor
        self.register_buffer("mean", th.zeros(dim, device=device))
        self.register_buffer("var", th.ones(dim, device=device))
        # Stored rather than a property: single states are standardized far more often than batches are added.
        self.register_buffer("std", th.ones(dim, device=device))
        self.register_buffer("n_batches", th.zeros((), dtype=th.int64))  # on the CPU: read at every update

    @th.no_grad()
    def update(self, batch: th.Tensor) -> None:
        """
        Add a batch.

        :param batch: ``(n, dim)``, n at least 1
        """
        batch_var, batch_mean = th.var_mean(batch, dim=0, correction=0)
        self.n_batches += 1
        weight = max(1.0 / self.n_batches.item(), self.min_weight)
        delta = batch_mean - self.mean
        self.mean.add_(delta, alpha=weight)
        # Law of total variance for a mixture of the past (1 - weight) and the batch (weight).
        self.var.addcmul_(delta, delta, value=weight).lerp_(batch_var, weight)
        # Round-off makes the variance of a constant column positive: judge it against the size of the mean as well.
        floor = self.mean.abs().clamp_(min=1.0).mul_(self.std_floor)
        th.sqrt(self.var, out=self.std)
        self.std.masked_fill_(self.std <= floor, 1.0)

    def standardize(self, batch: th.Tensor) -> th.Tensor:
        """
        Subtract the mean and divide by the standard deviation.

        :param batch: ``(n, dim)``
        """
        return (batch - self.mean) / self.std
