"""Count-based bonus: an upper reference for learned rewards in few dimensions."""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_exdm.common.validation import Between, check_choice
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.registry import register_reward


@register_reward("count")
class CountReward(FittedReward):
    r"""
    Count-based bonus over cells of the observation space (Bellemare et al. 2016, arXiv 1606.01868; Tang et al. 2017,
    arXiv 1611.04717): an upper reference in few dimensions, useless in many, where no cell is visited twice.

    :meth:`fit` is given minibatches drawn from all visited states, so a count :math:`n` estimates the density of visits
    up to a factor that all cells share. Older minibatches are forgotten exponentially, to follow the replay memory.

    A dimension with finite bounds has ``1 / bin_width`` cells. In any other a cell is ``bin_width`` times four standard
    deviations wide; the counts start over when a standard deviation has changed by more than a factor of two.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: not used
    :param bin_width: side of a cell as share of the range of each dimension, in (0, 1]
    :param bonus: ``"log"`` for :math:`-\log((n + 1) / (N + 1))` with the sum of all counts N, or ``"inverse_sqrt"`` for
        :math:`1 / \sqrt{n + 1}`
    :param forgetting: share of every count that is subtracted with each minibatch, in [0, 1)
    :param n_slots: number of counters, a power of two; cells share them by a hash if there are more cells
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "count"
    counts: th.Tensor
    scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        bin_width: Annotated[float, Between(0.0, 1.0, open_low=True)] = 0.02,
        bonus: Literal["log", "inverse_sqrt"] = "log",
        forgetting: Annotated[float, Between(0.0, 1.0, open_high=True)] = 1e-3,
        n_slots: Annotated[int, Between(2, 2**28)] = 2**17,
        **kwargs: Any,
    ) -> None:
        check_choice("bonus", bonus, ("log", "inverse_sqrt"))
        if n_slots & (n_slots - 1):
            raise ValueError(f"n_slots must be a power of two, got {n_slots}.")
        super().__init__(observation_space, action_space, **kwargs)
        self.bin_width = bin_width
        self.bonus = bonus
        self.forgetting = forgetting
        low, high = self._encode_observations.bounds
        # The bounds of float32 count as none.
        bounded = high - low < 1e6
        self._low = th.as_tensor(np.where(bounded, low, 0.0), device=self.device)
        self._unbounded = th.as_tensor(~bounded, device=self.device)
        span = np.where(bounded & (high > low), high - low, 1.0)
        self.register_buffer("scale", th.as_tensor(span, device=self.device))
        self.register_buffer("counts", th.zeros(n_slots, device=self.device))
        self._cells_per_dim = math.ceil(1.0 / bin_width - 1e-9)
        self._shift = 0
        if bounded.all() and self.observation_dim * math.log(self._cells_per_dim) <= math.log(n_slots):
            # One counter per cell.
            self._factors = self._cells_per_dim ** th.arange(self.observation_dim, device=self.device)
        else:
            # Multiply-shift hashing (Dietzfelbinger et al. 1997): odd factors, arithmetic modulo 2^64, the highest bits.
            self._shift = 64 - (n_slots.bit_length() - 1)
            factors = np.random.default_rng(0).integers(0, 2**62, self.observation_dim) * 2 + 1
            self._factors = th.as_tensor(factors, device=self.device)

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        # Cells lie in the observation space itself, but for an origin far from zero.
        return th.where(self._unbounded, self.whitening.localize(states), states.float())

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        self._follow_scale()
        if self.forgetting:
            self.counts *= 1.0 - self.forgetting
        self.counts += th.bincount(self._slots(observations), minlength=len(self.counts))
        return {"count_cells": float((self.counts > 0.5).sum())}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        counts = self.counts[self._slots(observations)]
        if self.bonus == "inverse_sqrt":
            return (counts + 1.0).rsqrt()
        return self.counts.sum().log1p() - counts.log1p()

    def _slots(self, observations: th.Tensor) -> th.Tensor:
        """Index of the counter of each state, ``(batch,)``."""
        cells = ((observations.double() - self._low) / (self.scale * self.bin_width)).floor().long()  # (batch, dim)
        if self._shift == 0:
            cells = cells.clamp(0, self._cells_per_dim - 1)  # the upper bound belongs to the last cell
            return (cells * self._factors).sum(dim=1)
        keys = (cells * self._factors).sum(dim=1)
        return (keys >> self._shift) & (len(self.counts) - 1)  # the mask clears the copied sign bit

    def _follow_scale(self) -> None:
        if not self._unbounded.any():
            return
        spread = 4.0 * self.whitening.std.double()
        ratio = (spread / self.scale)[self._unbounded]
        if ((ratio > 2.0) | (ratio < 0.5)).any():
            self.scale.copy_(th.where(self._unbounded, spread, self.scale))
            self.counts.zero_()
