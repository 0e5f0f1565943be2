"""The variance-preserving noise schedule in continuous time."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th


@dataclass(frozen=True)
class VPSchedule:
    r"""
    Variance-preserving (VP) diffusion with a linear rate (Song et al. 2021, arXiv 2011.13456, eq. 11 and app. C):
    :math:`x_t = \alpha_t x + \sigma_t \epsilon` with :math:`\log \alpha_t = -t^2 (\beta_1 - \beta_0) / 4 - t \beta_0 / 2`
    and :math:`\sigma_t^2 = 1 - \alpha_t^2`, for :math:`t \in [10^{-3}, 1]`.

    Every method takes and returns tensors of one common shape.

    :param beta_min: rate at t = 0
    :param beta_max: rate at t = 1
    :param t_min: smallest time in use; below it the process is indistinguishable from the data
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min < self.beta_max:
            raise ValueError(f"The noise rates must satisfy 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}.")

    def log_alpha(self, t: th.Tensor) -> th.Tensor:
        """Logarithm of the factor of the data at time ``t``."""
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha_sigma(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Factors of data and noise at time ``t``; their squares add up to one."""
        log_alpha = self.log_alpha(t)
        # expm1 keeps sigma accurate where alpha is close to one.
        return log_alpha.exp(), (-th.expm1(2.0 * log_alpha)).sqrt()

    def log_snr(self, t: th.Tensor) -> th.Tensor:
        r"""Half the log signal-to-noise ratio, :math:`\lambda_t = \log(\alpha_t / \sigma_t)`; falls with ``t``."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * (-th.expm1(2.0 * log_alpha)).log()

    def time(self, log_snr: th.Tensor) -> th.Tensor:
        """Inverse of :meth:`log_snr` in closed form (DPM-Solver, arXiv 2206.00927, app. D.4)."""
        log_alpha = -0.5 * th.nn.functional.softplus(-2.0 * log_snr)
        # Solve the quadratic for t in the form that does not cancel for small t.
        return (
            -4.0 * log_alpha / (self.beta_min + (self.beta_min**2 - 4.0 * log_alpha * (self.beta_max - self.beta_min)).sqrt())
        )

    @property
    def noise_ratio_range(self) -> tuple[float, float]:
        r"""Smallest and largest :math:`\sigma_t / \alpha_t` of the schedule."""
        low, high = th.tensor([self.t_min, self.t_max], dtype=th.float64)
        return math.exp(-self.log_snr(low).item()), math.exp(-self.log_snr(high).item())


def levels(log_snr: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    r"""
    Compute the factors of data and noise, :math:`\alpha^2 = \mathrm{sigmoid}(2 \lambda)` and
    :math:`\sigma^2 = \mathrm{sigmoid}(-2 \lambda)`, because :math:`\alpha^2 + \sigma^2 = 1`.

    :param log_snr: half the log signal-to-noise ratios, :math:`\lambda = \log(\alpha / \sigma)`
    :return: factor of the data and factor of the noise, of the same shape
    """
    return th.sigmoid(2.0 * log_snr).sqrt(), th.sigmoid(-2.0 * log_snr).sqrt()


class NoisySamples(NamedTuple):
    """
    Noisy samples of a minibatch.

    :param x_t: noisy samples, ``(batch, dim)``
    :param noise: noise in them, ``(batch, dim)``
    :param log_snr: log signal-to-noise ratios, ``(batch, 1)``
    :param alpha: factor of the data, ``(batch, 1)``
    :param sigma: factor of the noise, ``(batch, 1)``
    """

    x_t: th.Tensor
    noise: th.Tensor
    log_snr: th.Tensor
    alpha: th.Tensor
    sigma: th.Tensor


def stratified_levels(low: float, high: float, n: int, generator: th.Generator) -> th.Tensor:
    """
    Draw noise levels that cover a range evenly: one in each of ``n`` equal cells.

    :param low: lowest log signal-to-noise ratio
    :param high: highest log signal-to-noise ratio
    :param n: number of levels
    :param generator: random generator, on the device of the result
    :return: increasing log signal-to-noise ratios, ``(n,)``
    """
    cells = th.rand(n, generator=generator, device=generator.device) + th.arange(n, device=generator.device)
    return low + (high - low) * cells / n
