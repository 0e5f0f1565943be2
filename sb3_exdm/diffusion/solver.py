"""A fast solver of the reverse process."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch as th

from sb3_exdm.diffusion.schedule import VPSchedule

GRIDS = ("log_snr", "time", "quadratic")


def time_grid(schedule: VPSchedule, n_sampling_steps: int, grid: str = "log_snr") -> th.Tensor:
    """
    Times at which the solver evaluates the model, from the end of the process to its beginning.

    :param schedule: noise schedule
    :param n_sampling_steps: number of evaluations
    :param grid: ``"log_snr"`` (equal steps of the log signal-to-noise ratio), ``"time"`` (equal steps of t) or
        ``"quadratic"`` (equal steps of the square root of t)
    :return: ``(n_sampling_steps + 1,)`` decreasing times, double precision
    """
    if n_sampling_steps < 1:
        raise ValueError(f"n_sampling_steps must be at least 1, got {n_sampling_steps}.")
    t_max, t_min = th.tensor([schedule.t_max, schedule.t_min], dtype=th.float64)
    if grid == "log_snr":
        low, high = schedule.log_snr(t_max), schedule.log_snr(t_min)
        return schedule.time(low + (high - low) * th.linspace(0, 1, n_sampling_steps + 1, dtype=th.float64))
    if grid == "time":
        return th.linspace(schedule.t_max, schedule.t_min, n_sampling_steps + 1, dtype=th.float64)
    if grid == "quadratic":
        return th.linspace(schedule.t_max**0.5, schedule.t_min**0.5, n_sampling_steps + 1, dtype=th.float64).square()
    raise ValueError(f"Unknown time grid {grid!r}; choose one of {', '.join(GRIDS)}.")


class SolverStep(NamedTuple):
    r"""
    What one step of the solver needs to know, as plain numbers.

    The next sample is ``keep * x + move * direction``; the direction is the predicted data, extrapolated from the previous
    prediction by ``extrapolation`` times their difference.
    """

    time: float
    log_snr: float
    alpha: float
    sigma: float
    keep: float
    move: float
    extrapolation: float


@lru_cache(maxsize=64)
def solver_steps(schedule: VPSchedule, n_sampling_steps: int, grid: str = "log_snr") -> tuple[SolverStep, ...]:
    """
    The coefficients of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). The first and the last step are of
    first order.

    :param schedule: noise schedule
    :param n_sampling_steps: number of steps
    :param grid: spacing of the steps, see :func:`time_grid`
    """
    times = time_grid(schedule, n_sampling_steps, grid)
    alphas, sigmas = (values.tolist() for values in schedule.alpha_sigma(times))
    log_snrs = schedule.log_snr(times)
    widths = log_snrs.diff()  # h_i
    moves = (-th.expm1(-widths)).tolist()
    steps = []
    for i in range(n_sampling_steps):
        inner = 0 < i < n_sampling_steps - 1
        steps.append(
            SolverStep(
                time=times[i].item(),
                log_snr=log_snrs[i].item(),
                alpha=alphas[i],
                sigma=sigmas[i],
                keep=sigmas[i + 1] / sigmas[i],
                move=alphas[i + 1] * moves[i],
                extrapolation=0.5 * (widths[i] / widths[i - 1]).item() if inner else 0.0,  # 1 / (2 r_i)
            )
        )
    return tuple(steps)


def integrate(predict_data: Callable[[th.Tensor, int], th.Tensor], x: th.Tensor, steps: tuple[SolverStep, ...]) -> th.Tensor:
    """
    Second-order multistep integration of the probability-flow ODE in data prediction.

    :param predict_data: maps noisy samples ``(batch, dim)`` and the number of the step to the predicted data
    :param x: start noise, ``(batch, dim)``, standard normal
    :param steps: from :func:`solver_steps`
    :return: samples, ``(batch, dim)``
    """
    previous = None
    for i, step in enumerate(steps):
        data = predict_data(x, i)
        direction = data if previous is None or not step.extrapolation else data + step.extrapolation * (data - previous)
        x = step.keep * x + step.move * direction
        previous = data
    return x


def dpm_solver_2m(
    predict_noise: Callable[[th.Tensor, th.Tensor], th.Tensor],
    x: th.Tensor,
    schedule: VPSchedule,
    n_sampling_steps: int = 10,
    *,
    grid: str = "log_snr",
) -> th.Tensor:
    """
    DPM-Solver++(2M) with any noise prediction.

    :param predict_noise: maps noisy samples ``(batch, dim)`` and a time ``(batch,)`` to the predicted noise
    :param x: start noise, ``(batch, dim)``, standard normal
    :param schedule: noise schedule
    :param n_sampling_steps: number of evaluations of ``predict_noise``
    :param grid: spacing of the steps, see :func:`time_grid`
    :return: samples, ``(batch, dim)``
    """
    steps = solver_steps(schedule, n_sampling_steps, grid)

    def predict_data(x_t: th.Tensor, i: int) -> th.Tensor:
        noise = predict_noise(x_t, x_t.new_full((x_t.shape[0],), steps[i].time))
        return (x_t - steps[i].sigma * noise) / steps[i].alpha  # x_theta, eq. 7 of the paper solved for x_0

    return integrate(predict_data, x, steps)
