"""The generative model against closed forms."""

import math

import pytest
import torch as th

from sb3_exdm.diffusion import DiffusionModel, VPSchedule, denoising_error
from sb3_exdm.diffusion.solver import GRIDS, integrate, solver_steps, time_grid

SCHEDULE = VPSchedule()


def dpm_solver_2m(predict_noise, x: th.Tensor, n_sampling_steps: int, grid: str = "log_snr") -> th.Tensor:
    """DPM-Solver++(2M) with any function of noisy samples and times as noise prediction."""
    steps = solver_steps(SCHEDULE, n_sampling_steps, grid)

    def predict_data(x_t: th.Tensor, i: int) -> th.Tensor:
        noise = predict_noise(x_t, x_t.new_full((len(x_t),), steps[i].time))
        return (x_t - steps[i].sigma * noise) / steps[i].alpha  # x_theta, eq. 7 of the paper solved for x_0

    return integrate(predict_data, x, steps)


def gaussian_denoising_error(alpha: th.Tensor, sigma: th.Tensor, std: float, dim: int) -> th.Tensor:
    """Posterior variance of the noise for data from N(0, s^2 I)."""
    signal = (alpha * std).square()
    return dim * signal / (signal + sigma.square())


def mixture_noise(means: th.Tensor, std: float):
    """Exact noise prediction for an equal mixture of Gaussians, from its score: ``-sigma * grad log p_t``."""

    def predict(x: th.Tensor, t: th.Tensor) -> th.Tensor:
        alpha, sigma = SCHEDULE.alpha_sigma(t[:1].double())
        variance = (alpha * std) ** 2 + sigma**2
        differences = x.unsqueeze(1).double() - alpha * means  # (batch, n_modes, dim)
        weights = th.softmax(-differences.square().sum(2) / (2 * variance), dim=1)  # (batch, n_modes)
        score = -(weights.unsqueeze(2) * differences).sum(1) / variance
        return (-sigma * score).to(x.dtype)

    return predict


def test_schedule_preserves_variance_and_inverts():
    t = th.linspace(1e-3, 1, 200, dtype=th.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    assert th.allclose(alpha**2 + sigma**2, th.ones_like(t))
    log_alpha = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    assert th.allclose(alpha, log_alpha.exp())
    assert th.allclose(SCHEDULE.log_snr(t), (alpha / sigma).log())
    assert th.allclose(SCHEDULE.time(SCHEDULE.log_snr(t)), t, rtol=1e-9)
    low, high = SCHEDULE.noise_ratio_range
    assert low == pytest.approx(1 / math.exp(SCHEDULE.log_snr(t[0]).item())) and high > 100


@pytest.mark.parametrize("grid", GRIDS)
def test_time_grid_runs_from_noise_to_data(grid):
    times = time_grid(SCHEDULE, 7, grid)
    assert len(times) == 8 and times[0].item() == pytest.approx(1.0) and times[-1].item() == pytest.approx(1e-3)
    assert (times.diff() < 0).all()


def test_unknown_grid_and_steps_are_refused():
    with pytest.raises(ValueError, match="log_snr, time, quadratic"):
        time_grid(SCHEDULE, 5, "cosine")
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(SCHEDULE, 0)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_solver_is_second_order_on_gaussian_data(std):
    """For N(0, s^2 I) the flow is a scaling: x_0 = x_T * sqrt(alpha_0^2 s^2 + sigma_0^2) / sqrt(alpha_T^2 s^2 + sigma_T^2)."""
    ends = th.tensor([1e-3, 1.0], dtype=th.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(ends)
    spread = (alpha**2 * std**2 + sigma**2).sqrt()
    start = th.randn(100, 3, dtype=th.float64, generator=th.Generator().manual_seed(0))
    exact = start * spread[0] / spread[1]
    predict = mixture_noise(th.zeros(1, 3, dtype=th.float64), std)
    errors = [((dpm_solver_2m(predict, start, n) - exact).abs().max() / exact.abs().max()).item() for n in (20, 40, 80)]
    assert errors[-1] < 1e-3
    # Halving the steps divides the error of a second-order method by about four.
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


def test_solver_finds_both_modes_of_a_mixture():
    means = th.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=th.float64)
    start = th.randn(4000, 2, generator=th.Generator().manual_seed(1))
    samples = dpm_solver_2m(mixture_noise(means, 0.3), start, 15)
    right = samples[:, 0] > 0
    assert right.float().mean().item() == pytest.approx(0.5, abs=0.05)
    for chosen, mean in ((right, means[1]), (~right, means[0])):
        assert th.allclose(samples[chosen].mean(0).double(), mean, atol=0.05)
        assert samples[chosen].std(0).mean().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 4])
def test_fitted_loss_approaches_the_optimum_for_gaussian_data(dim):
    """No model can have a smaller denoising error than the posterior variance of the noise."""
    std = 0.6
    generator = th.Generator().manual_seed(0)
    model = DiffusionModel(dim, learning_rate=3e-3, noise_ratios=(0.1, 5.0), seed=0)
    for _ in range(600):
        model.fit(std * th.randn(256, dim, generator=generator))
    data = std * th.randn(20_000, dim, generator=generator)
    noise = th.randn(data.shape, generator=generator)
    for ratio in (0.2, 1.0, 4.0):
        log_snr = th.full((len(data),), -math.log(ratio))
        alpha, sigma = model.levels(log_snr)
        x_t = alpha[:, None] * data + sigma[:, None] * noise
        with th.no_grad():
            reached = denoising_error(model.predict_noise(x_t, log_snr), noise).mean().item()
        optimum = gaussian_denoising_error(alpha[0], sigma[0], std, dim).item()
        # Within three standard errors of the sample below the optimum, and within a few percent of d above.
        assert optimum - 0.03 * dim < reached < optimum + 0.05 * dim, (ratio, reached, optimum)


def test_untrained_model_is_optimal_for_standard_normal_data():
    model = DiffusionModel(3, seed=0)
    x_t, log_snr = th.randn(5, 3), th.linspace(-3, 3, 5)
    _, sigma = model.levels(log_snr)
    assert th.allclose(model.predict_noise(x_t, log_snr), sigma[:, None] * x_t)


@pytest.mark.slow
def test_conditional_model_samples_what_its_condition_says():
    generator = th.Generator().manual_seed(0)
    model = DiffusionModel(1, 1, net_arch=(64, 64), learning_rate=3e-3, seed=0)
    for _ in range(800):
        condition = th.sign(th.randn(256, 1, generator=generator))
        model.fit(condition + 0.1 * th.randn(256, 1, generator=generator), condition)
    condition = th.tensor([[-1.0], [1.0]]).repeat(200, 1)
    samples = model.sample(400, condition)
    assert th.allclose(samples.view(200, 2).mean(0), th.tensor([-1.0, 1.0]), atol=0.15)


def test_error_of_the_data_is_that_of_the_noise_in_other_units():
    """At one level they differ by a factor; over all levels, only the former counts what is predicted out of pure noise."""
    data = th.randn(64, 2, generator=th.Generator().manual_seed(0))
    one_level = [DiffusionModel(2, noise_ratios=(3.0, 3.0), seed=0) for _ in range(2)]
    of_noise, of_data = (model.loss(data, error_of=kind) for model, kind in zip(one_level, ("noise", "data"), strict=True))
    th.testing.assert_close(of_data, 9.0 * of_noise)


@pytest.mark.slow
def test_what_the_condition_decides_is_learned_faster_by_the_error_of_the_data():
    generator = th.Generator().manual_seed(0)
    condition = th.rand(2000, 2, generator=generator) * 2 - 1
    decided = th.sin(3.0 * condition)
    errors = {}
    for kind in ("noise", "data"):
        model = DiffusionModel(2, 2, net_arch=(64, 64), learning_rate=3e-3, seed=0)
        for _ in range(800):
            rows = th.randint(2000, (256,), generator=generator)
            model.fit(decided[rows], condition[rows], error_of=kind)
        sample = model.sample(500, condition[:500], n_sampling_steps=5, grid="quadratic", noise=th.zeros(500, 2))
        errors[kind] = (sample - decided[:500]).square().mean().sqrt().item()
    assert errors["data"] < 0.2 and errors["data"] < 0.5 * errors["noise"], errors


def test_same_seed_same_weights_and_samples_and_global_generator_untouched():
    before = th.get_rng_state()
    models = [DiffusionModel(2, seed=3) for _ in range(2)]
    data = th.linspace(-1, 1, 64).view(32, 2)
    losses = [[model.fit(data).item() for _ in range(5)] for model in models]
    assert losses[0] == losses[1]
    assert th.equal(models[0].sample(8), models[1].sample(8))
    assert th.equal(before, th.get_rng_state())


@pytest.mark.slow
def test_residual_blocks_fit_as_well():
    model = DiffusionModel(
        2, net_arch=(32, 32), residual=True, dropout=0.1, learning_rate=3e-3, noise_ratios=(0.3, 3.0), seed=0
    )
    data = 0.2 * th.randn(512, 2, generator=th.Generator().manual_seed(0)) + 1.0
    losses = [model.fit(data).item() for _ in range(200)]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one dimension"):
        DiffusionModel(0)
    with pytest.raises(ValueError, match="increasing order"):
        DiffusionModel(2, noise_ratios=(1.0, 0.1))
    with pytest.raises(ValueError, match="'pixels'; choose one of noise, data"):
        DiffusionModel(2).loss(th.zeros(4, 2), error_of="pixels")
    with pytest.raises(ValueError, match="beta_min"):
        VPSchedule(1.0, 0.5)


@pytest.mark.parametrize("condition_dim", [0, 3])
def test_fused_fit_is_that_of_autograd(condition_dim):
    """Losses, weights and averaged weights, over twenty steps from the same seed."""
    rng = th.Generator().manual_seed(0)
    mine, plain = (
        DiffusionModel(2, condition_dim, net_arch=[16, 16], frequencies=[1.0, 2.0], learning_rate=1e-3, seed=0)
        for _ in range(2)
    )
    for _ in range(20):
        x = th.randn(64, 2, generator=rng)
        condition = th.randn(64, condition_dim, generator=rng) if condition_dim else None
        losses = mine.fit(x, condition), plain.fit(x, condition, error_of="noise")  # a further argument: autograd
        th.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for networks in ((mine.network, plain.network), (mine.average, plain.average)):
        for first, second in zip(*(network.parameters() for network in networks), strict=True):
            th.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    assert mine._fused_fit is not None and plain._fused_fit is None
