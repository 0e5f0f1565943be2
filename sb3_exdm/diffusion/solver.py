"""A fast solver of the reverse process."""

from collections.abc import Callable

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


def dpm_solver_2m(
    predict_noise: Callable[[th.Tensor, th.Tensor], th.Tensor],
    x: th.Tensor,
    schedule: VPSchedule,
    n_sampling_steps: int = 10,
    *,
    grid: str = "log_snr",
) -> th.Tensor:
    r"""
    DPM-Solver++(2M): second-order multistep integration of the probability-flow ODE in data prediction
    (Lu et al. 2022, arXiv 2211.01095, algorithm 2). The first and the last step are of first order.

    :param predict_noise: maps noisy samples ``(batch, dim)`` and a time ``(batch,)`` to the predicted noise
    :param x: start noise, ``(batch, dim)``, standard normal
    :param schedule: noise schedule
    :param n_sampling_steps: number of evaluations of ``predict_noise``
    :param grid: spacing of the steps, see :func:`time_grid`
    :return: samples, ``(batch, dim)``
    """
    times = time_grid(schedule, n_sampling_steps, grid)
    alphas, sigmas = schedule.alpha_sigma(times)
    log_snrs = schedule.log_snr(times)
    previous_data, previous_step = None, 1.0
    for i in range(n_sampling_steps):
        alpha, sigma = alphas[i].item(), sigmas[i].item()
        noise = predict_noise(x, x.new_full((x.shape[0],), times[i].item()))
        data = (x - sigma * noise) / alpha  # x_theta, eq. 7 of the paper solved for x_0
        step = (log_snrs[i + 1] - log_snrs[i]).item()  # h_i
        last = i == n_sampling_steps - 1
        if previous_data is None or last:
            direction = data
        else:
            ratio = step / previous_step  # 1 / r_i
            direction = (1.0 + 0.5 * ratio) * data - 0.5 * ratio * previous_data  # D_i
        x = (sigmas[i + 1].item() / sigma) * x - alphas[i + 1].item() * th.expm1(th.tensor(-step)).item() * direction
        previous_data, previous_step = data, step
    return x
