"""Running mean and standard deviation."""

from typing import Any

import torch as th
from torch import nn

LARGEST = 2.0**59
"""Largest value, in the unit of its column, whose square float32 represents with a margin."""


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
        self._add(batch)

    def _add(self, batch: th.Tensor) -> th.Tensor:
        """Add a batch; return which columns are constant, ``(dim,)``."""
        batch_var, batch_mean = th.var_mean(batch, dim=0, correction=0)
        self.n_batches += 1
        weight = max(1.0 / self.n_batches.item(), self.min_weight)
        delta = batch_mean - self.mean
        self.mean.add_(delta, alpha=weight)
        # Law of total variance for a mixture of the past (1 - weight) and the batch (weight).
        self.var.addcmul_(delta, delta, value=weight).lerp_(batch_var, weight)
        th.sqrt(self.var, out=self.std)
        constant = self.std <= self._floor()
        self.std.masked_fill_(constant, 1.0)
        return constant

    def _floor(self) -> th.Tensor:
        """Standard deviations ``(dim,)`` up to which a column is taken as constant."""
        # Round-off makes the variance of a constant column positive: judge it against the size of the mean as well.
        return self.mean.abs().clamp_(min=1.0).mul_(self.std_floor)

    def standardize(self, batch: th.Tensor) -> th.Tensor:
        """
        Subtract the mean and divide by the standard deviation.

        :param batch: ``(n, dim)``
        """
        return (batch - self.mean) / self.std


class Whitening(RunningMoments):
    """
    Running moments of data in any unit and far from zero, which float32 could not represent: 1000 with a spread of 0.001, or
    a scale of 1e20.

    The moments are those of ``(batch - origin) / unit``, computed in float64 and rounded to float32. The origin is 0 and the
    unit 1 but for columns that are narrow, with a range below a ten thousandth of their size, or whose range is beyond
    1e15 or below 1e-15. They get theirs in the first batch in which they vary.

    Simulators leave jitter where nothing moves. A column is taken as constant if its standard deviation is below a
    millionth of 1, or of the largest one of all columns if that is smaller.

    :param dim: number of columns
    :param device: PyTorch device
    """

    origin: th.Tensor
    unit: th.Tensor

    def __init__(self, dim: int, *, device: th.device | str = "cpu") -> None:
        super().__init__(dim, device=device)
        self.register_buffer("origin", th.zeros(dim, dtype=th.float64, device=device))
        self.register_buffer("unit", th.ones(dim, dtype=th.float64, device=device))
        self._is_moved = False
        self._has_constants = True

    @th.no_grad()
    def update(self, batch: th.Tensor) -> None:
        """
        Add a batch.

        :param batch: float32 or float64, ``(n, dim)``, n at least 1
        :raises ValueError: if a column has become so much larger that its variance overflows
        """
        if self._has_constants:
            self._choose_units(batch.double())
        local = self.localize(batch)
        too_large = local.abs().amax(dim=0) > LARGEST
        if too_large.any():
            column = int(too_large.nonzero()[0])
            raise ValueError(
                f"Column {column} of the data has values up to {batch[:, column].abs().max():.2g}, after values of about "
                f"{self.unit[column]:.2g}: their variance overflows. Rescale or clip the observations, for instance with "
                "gymnasium.wrappers.TransformObservation."
            )
        self._has_constants = bool(self._add(local).any())

    def localize(self, batch: th.Tensor) -> th.Tensor:
        """
        Subtract the origin and divide by the unit.

        :param batch: float32 or float64, ``(n, dim)``
        :return: float32 ``(n, dim)``
        """
        return ((batch.double() - self.origin) / self.unit).float() if self._is_moved else batch.float()

    def standardize(self, batch: th.Tensor) -> th.Tensor:
        """
        Subtract the mean and divide by the standard deviation.

        :param batch: float32 or float64, ``(n, dim)``
        :return: float32 ``(n, dim)``
        """
        return super().standardize(self.localize(batch))

    def _floor(self) -> th.Tensor:
        largest = (self.var.sqrt() * self.unit).max().clamp(max=1.0)
        return th.maximum(self.mean.abs().double(), largest / self.unit) * self.std_floor

    def _choose_units(self, batch: th.Tensor) -> None:
        """Choose origin and unit of the columns that were constant, and vary in this batch, if they need any."""
        low, high = batch.aminmax(dim=0)
        spread, size = high - low, th.maximum(low.abs(), high.abs())
        begins = (spread > self.std_floor * spread.max().clamp(max=1.0)) | (size > LARGEST)
        if self.n_batches > 0:
            begins &= self.var.sqrt() <= self._floor()
        is_narrow = begins & (spread <= 1e-4 * size)
        is_extreme = begins & (spread > 0) & ((spread < 2.0**-50) | (spread > 2.0**50))
        moved = is_narrow | is_extreme
        self.origin[is_narrow] = batch[0][is_narrow]
        self.unit[is_extreme] = spread[is_extreme].log2().round().exp2()
        # What they were so far is the origin, up to less than float32 represents.
        self.mean[moved] = 0.0
        self.var[moved] = 0.0
        self._is_moved |= bool(moved.any())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of version 0.3 have neither.
        state_dict.setdefault(prefix + "origin", th.zeros_like(self.origin))
        state_dict.setdefault(prefix + "unit", th.ones_like(self.unit))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._is_moved = bool((self.origin != 0).any() or (self.unit != 1).any())
        self._has_constants = True  # looks again at the next update
