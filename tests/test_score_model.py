"""The score ranks states by rarity, in any dimension and scale, without tuning."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.stats import spearmanr

from sb3_exdm import ScoreModel
from sb3_exdm.diffusion import DiffusionModel, denoising_error
from sb3_exdm.envs import MazeLayout
from sb3_exdm.rewards.corrected_error import CorrectedDenoisingError
from sb3_exdm.rewards.denoising_error import DenoisingError
from sb3_exdm.rewards.noise_range import NoiseRange


def unbounded(dim: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (dim,))


def maze_sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in a maze, cells weighted by the distance from the start, and their log density."""
    layout = MazeLayout.load("SquareTree")
    distances = layout.distances((0, 0))
    cells = np.array(list(distances))
    weights = np.exp(-0.25 * np.array(list(distances.values())))
    weights /= weights.sum()
    chosen = rng.choice(len(cells), n, p=weights)
    return cells[chosen] + rng.uniform(-0.5, 0.5, (n, 2)), np.log(weights[chosen])


def mixture_sample(rng: np.random.Generator, n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussians of different weight and width, each dimension in a unit of its own from 1e-5 to 10."""
    layout = np.random.default_rng(dim)
    means, widths = 2.0 * layout.normal(size=(3, dim)), np.array([0.4, 0.8, 1.2])
    weights, units = np.array([0.6, 0.3, 0.1]), 10 ** layout.uniform(-5, 1, dim)
    chosen = rng.choice(3, n, p=weights)
    x = means[chosen] + widths[chosen, None] * rng.normal(size=(n, dim))
    squared = ((x[:, None] - means) ** 2).sum(2) / widths**2
    log_parts = np.log(weights) - 0.5 * squared - dim * np.log(widths)
    return x * units, np.logaddexp.reduce(log_parts, axis=1)


def fitted(x: np.ndarray, n_fits: int, rng: np.random.Generator, **kwargs) -> ScoreModel:
    model = ScoreModel(unbounded(x.shape[1]), seed=0, device="cpu", **kwargs)
    for _ in range(n_fits):
        model.fit(x[rng.integers(len(x), size=256)])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "n_fits", "least"),
    [
        pytest.param(maze_sample, 2000, 0.9, id="maze"),
        pytest.param(lambda rng, n: mixture_sample(rng, n, 10), 1000, 0.85, id="10-d"),
        pytest.param(lambda rng, n: mixture_sample(rng, n, 24), 1000, 0.85, id="24-d"),
        pytest.param(lambda rng, n: mixture_sample(rng, n, 80), 1000, 0.85, id="80-d"),
    ],
)
def test_score_ranks_states_by_rarity(sample, n_fits, least):
    rng = np.random.default_rng(0)
    x, _ = sample(rng, 20_000)
    held_out, log_density = sample(rng, 4000)
    model = fitted(x, n_fits, rng)
    assert model.n_evaluations <= 16
    assert spearmanr(model.score(held_out), -log_density).statistic > least
    assert model.ranking > 0.4  # no warning
    reward = model.reward(held_out)
    assert abs(reward.mean()) < 0.2 and 0.7 < reward.std() < 1.3


def test_score_equals_the_plain_mean_over_its_noises():
    """The affine form of DenoisingError against the definition of the score, one network call per noise."""
    rng = np.random.default_rng(0)
    for kind in ("state", "action"):
        model = ScoreModel(unbounded(3), unbounded(2), kind=kind, seed=0, device="cpu")
        x, a = rng.normal(size=(64, 3)).astype(np.float32), rng.normal(size=(64, 2)).astype(np.float32)
        for _ in range(20):
            model.fit(x, a)
        states = model.whitening.standardize(th.as_tensor(x))
        acts = model.action_whitening.standardize(th.as_tensor(a)) if kind == "action" else None
        data, condition = (states, None) if acts is None else (acts, model.condition_features(states))
        errors = []
        for log_snr, noises in zip(model._log_snr, model.noises, strict=True):
            alpha, sigma = model.model.levels(log_snr)
            for noise in noises:
                with th.no_grad():
                    predicted = model.model.predict_noise(alpha * data + sigma * noise, log_snr.expand(64), condition)
                errors.append(denoising_error(predicted, noise.expand_as(data)))
        expected = th.stack(errors).mean(0).numpy()
        np.testing.assert_allclose(model.score(x, a), expected, rtol=1e-3, atol=1e-4)


def test_corrected_error_equals_its_definition(monkeypatch):
    """Squared error plus noise times prediction minus the divergence, from a Jacobian matrix, for every state and noise."""
    dim, condition_dim = 6, 3
    model = DiffusionModel(dim, condition_dim, net_arch=[16], seed=0)
    generator = th.Generator().manual_seed(0)
    for weights in model.average.parameters():
        weights.normal_(0.0, 0.3, generator=generator)
    log_snr = th.tensor([0.5, -0.5])
    alpha, sigma = model.levels(log_snr)
    noises = th.nn.functional.normalize(th.randn(2, 3, dim, generator=generator), dim=2) * dim**0.5
    x, condition = th.randn(5, dim, generator=generator), th.randn(5, condition_dim, generator=generator)

    def definition(i: int, level: int, noise: th.Tensor) -> th.Tensor:
        def predicted(x_t: th.Tensor) -> th.Tensor:
            return model.predict_noise(x_t.unsqueeze(0), log_snr[level : level + 1], condition[i : i + 1])[0]

        x_t = alpha[level] * x[i] + sigma[level] * noise
        divergence = th.autograd.functional.jacobian(predicted, x_t).trace()
        prediction = predicted(x_t)
        return (prediction - noise).square().sum() + noise @ prediction - sigma[level] * divergence

    pairs = [(level, noise) for level in range(2) for noise in noises[level]]
    expected = th.stack([th.stack([definition(i, *pair) for pair in pairs]).mean() for i in range(5)]).detach()
    error = CorrectedDenoisingError(noises, alpha, sigma, model.average.noise_level(log_snr))
    error.set_network(model.average)
    assert th.allclose(error.errors(x, condition), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("sb3_exdm.rewards.corrected_error.CHUNK", 2 * 6 * 16)  # two states at once, the last one alone
    assert th.allclose(error.errors(x, condition), expected, rtol=1e-4, atol=1e-4)


def test_corrected_error_has_the_mean_of_the_plain_error_and_less_variance():
    """Over draws of the noises, for the difference of two states, which is what ranks them."""
    dim = 40
    generator = th.Generator().manual_seed(0)
    widths = th.linspace(0.2, 1.8, dim)
    model = DiffusionModel(dim, net_arch=[128], learning_rate=4e-3, noise_ratios=(0.3, 1.25), seed=0)
    for _ in range(300):
        center = th.randint(2, (256, 1), generator=generator)
        model.fit(th.where(center == 0, widths, widths.flip(0)) * th.randn(256, dim, generator=generator))
    x = th.stack([widths, widths.flip(0)]) * th.randn(dim, generator=generator)  # equally likely in two Gaussians
    log_snr = -th.tensor([0.4, 0.9]).log()
    alpha, sigma = model.levels(log_snr)
    levels = model.average.noise_level(log_snr)
    differences: list[list[float]] = [[], []]
    for _ in range(200):
        noise = th.nn.functional.normalize(th.randn(2, 1, dim, generator=generator), dim=2) * dim**0.5
        noises = th.cat([noise, -noise], dim=1)
        plain = DenoisingError(noises, alpha, sigma, levels, th.zeros(0))
        corrected = CorrectedDenoisingError(noises, alpha, sigma, levels)
        for error, drawn in zip((plain, corrected), differences, strict=True):
            error.set_network(model.average)
            first, second = error.errors(x).tolist()
            drawn.append(first - second)
    (plain_mean, mean), (plain_std, std) = np.mean(differences, axis=1), np.std(differences, axis=1)
    assert abs(mean - plain_mean) < 4.0 * plain_std / 200**0.5
    assert std < 0.5 * plain_std


def test_many_dimensions_have_one_wide_layer_and_few_noises():
    model = ScoreModel(unbounded(40), seed=0, device="cpu")
    assert CorrectedDenoisingError.supports(model.model.network)
    assert model.n_evaluations == 8
    deep = ScoreModel(unbounded(40), seed=0, device="cpu", net_arch=[32, 32])
    assert not CorrectedDenoisingError.supports(deep.model.network)
    assert deep.n_evaluations == 16


def test_noises_are_antithetic_and_of_typical_length():
    noises = ScoreModel(unbounded(5), seed=0, device="cpu").noises  # (n_levels, n_noises, dim)
    assert th.allclose(noises.sum(1), th.zeros(len(noises), 5), atol=1e-5)
    assert th.allclose(noises.norm(dim=2), th.full(noises.shape[:2], 5**0.5), atol=1e-4)


def test_noise_range_follows_the_distance_between_neighbors():
    generator = th.Generator().manual_seed(0)
    lows = []
    for dim in (2, 4, 24):
        noise_range = NoiseRange(dim)
        for _ in range(100):
            noise_range.update(th.randn(256, dim, generator=generator))
        lows.append(noise_range.range[0])
        assert noise_range.range[0] < noise_range.range[1]
        assert noise_range.frequencies[-1].item() == pytest.approx(0.25 / noise_range.range[0])
    assert lows[0] < lows[1] < lows[2] == pytest.approx(noise_range.max_low)


@pytest.mark.slow
@pytest.mark.parametrize("n_states", [1, 3, 256])
def test_repeated_states_do_not_break_the_noise_range(n_states):
    model = ScoreModel(unbounded(2), seed=0, device="cpu")
    x = np.ones((n_states, 2), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            model.fit(x)
    assert np.isfinite(model.reward(np.array([[1.0, 1.0], [50.0, -3.0]]))).all()


@pytest.mark.slow
def test_constant_and_tiny_dimensions_do_not_matter():
    rng = np.random.default_rng(0)
    x, _ = maze_sample(rng, 5000)
    scaled = np.column_stack([x[:, 0] * 1e-5, x[:, 1] * 1e4, np.full(len(x), 7.0)])
    held_out, log_density = maze_sample(rng, 2000)
    model = fitted(scaled, 1000, rng)
    score = model.score(np.column_stack([held_out[:, 0] * 1e-5, held_out[:, 1] * 1e4, np.full(2000, 7.0)]))
    assert spearmanr(score, -log_density).statistic > 0.7


@pytest.mark.slow
def test_edp_scores_rare_actions():
    rng = np.random.default_rng(0)
    model = ScoreModel(unbounded(2), spaces.Box(-1, 1, (2,)), kind="action", seed=0, device="cpu")
    observations = rng.normal(size=(4000, 2))
    actions = np.clip(0.5 * np.sign(observations) + 0.1 * rng.normal(size=(4000, 2)), -1, 1)
    for _ in range(500):
        drawn = rng.integers(4000, size=256)
        model.fit(observations[drawn], actions[drawn])
    usual = model.score(observations, actions)
    unusual = model.score(observations, -actions)
    assert (unusual > usual).mean() > 0.95


@pytest.mark.slow
def test_features_of_the_state_let_edp_tell_neighboring_states_apart():
    """The usual action changes its sign eight times over the states."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1.0, 1.0, size=(4000, 2))
    actions = 0.5 * np.sign(np.sin(4.0 * np.pi * observations)) + 0.1 * rng.normal(size=(4000, 2))
    rates = []
    for n_frequencies in (0, None):
        model = ScoreModel(
            unbounded(2), spaces.Box(-1, 1, (2,)), kind="action", n_frequencies=n_frequencies, seed=0, device="cpu"
        )
        for _ in range(500):
            drawn = rng.integers(4000, size=256)
            model.fit(observations[drawn], actions[drawn])
        rates.append((model.score(observations, -actions) > model.score(observations, actions)).mean())
    assert rates[1] > 0.85 and rates[1] > rates[0] + 0.1


@pytest.mark.slow
def test_diagnostic_warns_when_the_ranking_is_lost():
    """For a model that learns nothing."""
    rng = np.random.default_rng(0)
    broken = ScoreModel(unbounded(2), seed=0, device="cpu", learning_rate=1e-9)
    # A ring: its middle is empty, but the untrained score grows with the distance from the mean.
    angle, radius = rng.uniform(0, 2 * np.pi, 20_000), 1.0 + 0.3 * rng.normal(size=20_000) ** 2
    inner = 1.0 / radius
    ring = np.column_stack([inner * np.cos(angle), inner * np.sin(angle)])
    with pytest.warns(UserWarning, match="no longer ranks"):
        for _ in range(1500):
            broken.fit(ring[rng.integers(len(ring), size=256)])
    assert broken.ranking < 0.1


def random_score(dim: int) -> ScoreModel:
    """Model that ranks states at random and checks the ranking often."""
    model = ScoreModel(unbounded(dim), seed=0, device="cpu")
    generator = th.Generator().manual_seed(0)
    model._score_batch = lambda observations, actions: th.rand(len(observations), generator=generator)
    model.noise_range.update_interval = 4
    return model


@pytest.mark.parametrize("maze", ["SquareTree", "SquareBottleneck", "SquareLarge"])
def test_diagnostic_is_silent_where_states_are_uniform(maze):
    """No score ranks the states of a maze that has been explored evenly."""
    rng = np.random.default_rng(0)
    cells = np.array(list(MazeLayout.load(maze).distances((0, 0))))
    model = random_score(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            model.fit(cells[rng.integers(len(cells), size=256)] + rng.uniform(-0.5, 0.5, (256, 2)))
    assert abs(model.ranking) < 0.3


def test_diagnostic_warns_where_a_random_score_misses_large_differences():
    rng = np.random.default_rng(0)
    model = random_score(10)
    with pytest.warns(UserWarning, match="no longer ranks"):
        for _ in range(200):
            model.fit(rng.normal(size=(256, 10)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "transition"}, "kind must be 'state' or 'action', got 'transition'"),
        ({"n_noises": 3}, "even"),
        ({"kind": "action"}, "pass action_space"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(unbounded(2), **kwargs)
