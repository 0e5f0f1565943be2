"""Solver of the reverse process: DPM-Solver++(2M)."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch as th

from sb3_exdm.common.validation import check_choice
from sb3_exdm.diffusion.schedule import VPSchedule

GRIDS = ("log_snr", "time", "quadratic")


def time_grid(schedule: VPSchedule, n_sampling_steps: int, grid: str = "log_snr") -> th.Tensor:
    """
    Compute the times at which the solver evaluates the model, from the end of the process to its beginning.

    :param schedule: noise schedule
    :param n_sampling_steps: number of evaluations
    :param grid: ``"log_snr"`` (equal steps of the log signal-to-noise ratio), ``"time"`` (equal steps of t) or
        ``"quadratic"`` (equal steps of the square root of t)
    :return: decreasing times in double precision, ``(n_sampling_steps + 1,)``
    """
    if n_sampling_steps < 1:
        raise ValueError(f"n_sampling_steps must be at least 1, got {n_sampling_steps}.")
    check_choice("time grid", grid, GRIDS)
    t_max, t_min = th.tensor([schedule.t_max, schedule.t_min], dtype=th.float64)
    if grid == "log_snr":
        low, high = schedule.log_snr(t_max), schedule.log_snr(t_min)
        return schedule.time(low + (high - low) * th.linspace(0, 1, n_sampling_steps + 1, dtype=th.float64))
    if grid == "time":
        return th.linspace(schedule.t_max, schedule.t_min, n_sampling_steps + 1, dtype=th.float64)
    return th.linspace(schedule.t_max**0.5, schedule.t_min**0.5, n_sampling_steps + 1, dtype=th.float64).square()


class SolverStep(NamedTuple):
    r"""
    Coefficients of one step of the solver.

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
    Compute the coefficients of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2). The first and the last step
    are of first order.

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
    Integrate the probability-flow ODE, a second-order multistep method in data prediction.

    :param predict_data: maps noisy samples ``(batch, dim)`` and the index of the step to the predicted data
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
