"""Guided, weighted and distilled sampling against closed forms, and the solver against another implementation."""

import math

import pytest
import torch as th
from test_diffusion import dpm_solver_2m

from examples.experiments import bandit
from sb3_exdm.diffusion import DiffusionModel, EnergyModel, VPSchedule, contrastive_energy_loss
from sb3_exdm.diffusion.solver import GRIDS

SCHEDULE = VPSchedule()
MEANS = th.tensor([[-0.6, 0.5], [0.6, 0.6], [0.0, 0.0], [-0.5, -0.6], [0.6, -0.5]], dtype=th.float64)
STDS = th.tensor([0.12, 0.1, 0.08, 0.12, 0.1], dtype=th.float64)
WEIGHTS = th.tensor([0.3, 0.15, 0.2, 0.2, 0.15], dtype=th.float64)


def seeded(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def mixture_samples(n: int, seed: int) -> th.Tensor:
    generator = seeded(seed)
    chosen = th.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return (MEANS[chosen] + STDS[chosen, None] * th.randn(n, 2, generator=generator)).float()


def mixture_noise(x: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """Exact noise prediction for the mixture, ``-sigma * grad log p_t``."""
    variances = (alpha * STDS) ** 2 + sigma**2  # (n_modes,)
    differences = x.double().unsqueeze(1) - alpha * MEANS  # (batch, n_modes, dim)
    log_parts = WEIGHTS.log() - variances.log() - differences.square().sum(2) / (2 * variances)
    score = -(log_parts.softmax(1) / variances).unsqueeze(2).mul(differences).sum(1)
    return (-sigma * score).to(x.dtype)


# --- The contrastive energy ---------------------------------------------------------------------------------------------


def test_contrastive_loss_is_smallest_at_the_true_energy():
    energies = 2.0 * th.randn(64, 8, generator=seeded())
    offset = th.randn(64, 1, generator=seeded(1))  # a constant per row is free
    predicted = (energies + offset).requires_grad_()
    loss = contrastive_energy_loss(energies, predicted)
    assert th.autograd.grad(loss, predicted)[0].abs().max() < 1e-7
    p = energies.softmax(1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-5)  # the entropy: no loss can be lower
    # Neither another scale, nor the opposite sign, nor anything nearby is as good.
    for wrong in (0.5 * energies, 2.0 * energies, -energies, energies + 0.1 * th.randn(64, 8, generator=seeded(2))):
        assert contrastive_energy_loss(energies, wrong) > loss + 1e-4


def test_learned_energy_is_that_of_the_posterior():
    """
    For x ~ N(0, s^2 I) and E(x) = k x, log E[e^E | x_t] has the gradient k alpha s^2 / (alpha^2 s^2 + sigma^2), everywhere.
    """
    std, slope, generator = 0.5, th.tensor([1.0, -0.5]), seeded()
    model = EnergyModel(2, net_arch=(32, 32), learning_rate=3e-3, seed=0)
    for _ in range(400):
        candidates = std * th.randn(16, 16, 2, generator=generator)
        model.fit(candidates, candidates @ slope)
    for ratio in (0.1, 0.5, 1.0):
        log_snr = th.full((500,), -math.log(ratio))
        alpha, sigma = 1 / math.sqrt(1 + ratio**2), ratio / math.sqrt(1 + ratio**2)
        spread = math.sqrt((alpha * std) ** 2 + sigma**2)
        gradient = model.gradient(spread * th.randn(500, 2, generator=generator), log_snr).mean(0)
        assert th.allclose(gradient, slope * alpha * std**2 / spread**2, atol=0.1), ratio


def test_guided_sampling_needs_no_grad_mode_of_its_own():
    model, energy = DiffusionModel(2, seed=0), EnergyModel(2, seed=0)
    noise = th.randn(16, 2, generator=seeded())
    with th.no_grad():
        guided = model.sample(16, noise=noise, guidance=energy.gradient)
        plain = model.sample(16, noise=noise)
    assert not guided.requires_grad and guided.isfinite().all() and not th.allclose(guided, plain, atol=1e-3)
    with_gradients = model.sample(16, noise=noise, guidance=energy.gradient)
    assert th.allclose(with_gradients, guided)


# --- Guidance -----------------------------------------------------------------------------------------------------------


def test_linear_energy_shifts_a_gaussian():
    """N(0, s^2 I) times e^(k x) is N(s^2 k, s^2 I): the flow of guided noise ends where the flow to that Gaussian ends."""
    std, slope = 0.5, th.tensor([2.0, -1.0], dtype=th.float64)

    def spread(alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
        return ((alpha * std) ** 2 + sigma**2).sqrt()

    def guided(x: th.Tensor, t: th.Tensor) -> th.Tensor:
        alpha, sigma = SCHEDULE.alpha_sigma(t[0])
        gradient = slope * alpha * std**2 / spread(alpha, sigma) ** 2
        return sigma * x / spread(alpha, sigma) ** 2 - sigma * gradient

    start = th.randn(500, 2, generator=seeded(), dtype=th.float64)
    samples = dpm_solver_2m(guided, start, 100)
    alpha, sigma = SCHEDULE.alpha_sigma(th.tensor([1e-3, 1.0], dtype=th.float64))
    first, last = spread(alpha, sigma)
    mean = std**2 * slope
    exact = alpha[0] * mean + (start - alpha[1] * mean) * first / last
    assert (samples - exact).abs().max() < 2e-3


def test_sample_adds_the_guidance_to_the_score():
    """An untrained model is exact for N(0, I); with the energy k x, whose gradient is k alpha, it must sample N(k, I)."""
    model, slope = DiffusionModel(2, seed=0), th.tensor([1.5, -0.5])
    noise = th.randn(500, 2, generator=seeded())
    samples = model.sample(
        500, noise=noise, n_sampling_steps=60, guidance=lambda x, log_snr: model.levels(log_snr)[0].unsqueeze(1) * slope
    )
    assert th.allclose(samples, noise + slope, atol=0.02)


def test_bound_holds_under_guidance():
    model = DiffusionModel(2, seed=0)
    samples = model.sample(100, bound=1.0, guidance=lambda x, log_snr: th.full_like(x, 100.0))
    assert th.allclose(samples, th.ones_like(samples), atol=0.05)


# --- Weights and distillation -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_change_the_share_of_a_mode():
    """Two modes, equally frequent; the right one counts three times as much and so becomes three times as frequent."""
    shares = {}
    for right in (1.0, 3.0):
        generator = seeded()
        model = DiffusionModel(1, learning_rate=5e-3, ema_rate=0.98, seed=0)
        for _ in range(600):
            sign = th.sign(th.randn(512, 1, generator=generator))
            weight = th.where(sign[:, 0] > 0, right, 1.0)
            model.fit(sign + 0.2 * th.randn(512, 1, generator=generator), weight=weight / weight.mean())
        with th.no_grad():
            shares[right] = (model.sample(4000) > 0).float().mean().item()
    assert shares[1.0] == pytest.approx(0.5, abs=0.05)
    assert shares[3.0] == pytest.approx(0.75, abs=0.05)


@pytest.mark.slow
def test_distilled_model_samples_as_its_guided_teacher():
    teacher, student = DiffusionModel(2, seed=0), DiffusionModel(2, learning_rate=3e-3, seed=1)
    slope, generator = th.tensor([1.0, -0.5]), seeded()

    def gradient(x: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
        return teacher.levels(log_snr)[0].unsqueeze(1) * slope

    def guided(x: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
        return teacher.predict_noise(x, log_snr) - teacher.levels(log_snr)[1].unsqueeze(1) * gradient(x, log_snr)

    for _ in range(500):
        student.fit(th.randn(256, 2, generator=generator), target=lambda x, log_snr: guided(x, log_snr).detach())
    noise = th.randn(500, 2, generator=generator)
    with th.no_grad():
        own = student.sample(500, noise=noise)
        expected = teacher.sample(500, noise=noise, guidance=gradient)
        untaught = teacher.sample(500, noise=noise)
    assert (own - expected).norm(dim=1).mean() < 0.1 < (untaught - expected).norm(dim=1).mean()


# --- The solver ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("condition_dim", [0, 3])
def test_fast_sampling_equals_the_plain_solver(grid, condition_dim):
    """``sample`` computes once what does not change from step to step; ``dpm_solver_2m`` calls the whole network."""
    model = DiffusionModel(2, condition_dim, frequencies=(1.0, 3.0), learning_rate=3e-3, ema_rate=0.5, seed=0)
    generator = seeded()
    condition = th.randn(128, condition_dim, generator=generator) if condition_dim else None
    for _ in range(30):
        model.fit(0.3 * th.randn(128, 2, generator=generator), condition)
    noise = th.randn(128, 2, generator=generator)
    with th.no_grad():
        fast = model.sample(128, condition, n_sampling_steps=12, grid=grid, noise=noise)
        # In double precision, because the first steps divide by alpha = 0.007.
        model.double()
        plain = dpm_solver_2m(
            lambda x, t: model.predict_noise(x, SCHEDULE.log_snr(t), None if condition is None else condition.double()),
            noise.double(),
            12,
            grid=grid,
        )
    assert th.allclose(fast.double(), plain, atol=1e-5)


def test_start_noise_determines_the_sample():
    model = DiffusionModel(2, seed=0)
    noise = th.randn(8, 2, generator=seeded())
    before = model.generator.get_state()
    assert th.equal(model.sample(8, noise=noise), model.sample(8, noise=noise))
    assert th.equal(before, model.generator.get_state())  # nothing was drawn
    assert not th.equal(model.sample(8), model.sample(8))


def solve_mixture(n_sampling_steps: int, grid: str) -> th.Tensor:
    start = th.randn(4000, 2, generator=seeded(9))
    return dpm_solver_2m(
        lambda x, t: mixture_noise(x, *SCHEDULE.alpha_sigma(t[0].double())), start, n_sampling_steps, grid=grid
    )


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "limit"), [("log_snr", 0.002), ("quadratic", 0.003), ("time", 0.02)])
def test_ten_steps_of_the_solver_sample_a_mixture(grid, limit):
    """With the exact score the solver alone is at fault; two sets of exact samples differ by about 0.0005."""
    distance = bandit.energy_distance(solve_mixture(10, grid), mixture_samples(8000, seed=1))
    assert distance < limit


@pytest.mark.slow
def test_solver_is_as_close_as_that_of_diffusers():
    """The discrete schedule with beta from 1e-4 to 0.02 in 1000 steps is the continuous one with beta from 0.1 to 20."""
    diffusers = pytest.importorskip("diffusers")
    exact = mixture_samples(8000, seed=1)
    within = bandit.mean_distance(exact)
    theirs = {}
    for name, options in {"log_snr": {"use_lu_lambdas": True}, "time": {}, "karras": {"use_karras_sigmas": True}}.items():
        scheduler = diffusers.DPMSolverMultistepScheduler(
            beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", solver_order=2, **options
        )
        scheduler.set_timesteps(10)
        x = th.randn(4000, 2, generator=seeded(9))
        for i, t in enumerate(scheduler.timesteps):
            ratio = scheduler.sigmas[i].double()  # sigma / alpha
            alpha = (1 + ratio**2).rsqrt()
            x = scheduler.step(mixture_noise(x, alpha, ratio * alpha), t, x).prev_sample
        theirs[name] = bandit.energy_distance(x, exact, within)
    ours = {grid: bandit.energy_distance(solve_mixture(10, grid), exact, within) for grid in GRIDS}
    chance = 0.0005
    assert min(ours.values()) < min(theirs.values()) + chance, (ours, theirs)
    assert ours["log_snr"] < theirs["log_snr"] + chance and ours["time"] < theirs["time"] + chance, (ours, theirs)
