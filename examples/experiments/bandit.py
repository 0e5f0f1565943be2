r"""
How exactly policies are improved, where the answer is known: a bandit with two-dimensional actions, a behavior density of
five Gaussians and a smooth value.

The improved policy is :math:`\pi \propto \pi_d\, e^{Q / \beta}` (ExDM, arXiv 2502.07279, eq. 9). Its exact samples come from
rejection; the methods see nothing but samples of a model of the behavior and their values.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch as th
from tqdm.auto import tqdm

from sb3_exdm.benchmark.tables import check_seeds, markdown_table, write_csv, write_text
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.diffusion.energy import EnergyModel
from sb3_exdm.plots.style import check_picture_path, new_figure, save_figure
from sb3_exdm.policies.diffusion_actor import cosine_decay, set_learning_rate

TARGETS = {1.0: 0.02, 1.0 / 3.0: 0.01, 0.1: 0.01}
"""Energy distance that the best method shall reach, by beta."""
METHODS = {
    "weighted": "score matching, weighted by e^(Q/β)",
    "cep": "guidance by a contrastive energy",
    "distilled": "that guidance, distilled",
}
"""What each method does, by name."""

_MEANS = th.tensor([[-0.6, 0.55], [0.6, 0.6], [0.0, 0.0], [-0.55, -0.6], [0.6, -0.5]])
_STDS = th.tensor([0.12, 0.10, 0.08, 0.12, 0.10])
_WEIGHTS = th.tensor([0.30, 0.15, 0.20, 0.20, 0.15])
_HIGHEST_VALUE = 0.95

_N_DATA, _N_CANDIDATES = 100_000, 32_768
_N_SAMPLES, _N_REFERENCE = 4_000, 20_000
_NETWORK = {"net_arch": (128, 128, 128), "frequencies": (3.0, 6.0), "ema_rate": 0.995, "noise_ratios": (0.03, 150.0)}


def behavior_samples(n: int, generator: th.Generator) -> th.Tensor:
    """
    :param n: number of actions
    :param generator: source of randomness
    :return: actions of the behavior, ``(n, 2)``; 3 in 10,000 lie outside of [-1, 1]
    """
    chosen = th.multinomial(_WEIGHTS, n, replacement=True, generator=generator)
    return _MEANS[chosen] + _STDS[chosen].unsqueeze(1) * th.randn(n, 2, generator=generator)


def action_value(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: ``(n, 2)``
    :return: their values, ``(n,)``, at most 0.95; the best mode is not the most frequent one
    """
    x, y = actions.unbind(dim=1)
    return 0.6 * (2.0 * y).sin() + 0.3 * (3.0 * x).cos() + 0.05 * (2.0 * x).sin()


def exact_samples(beta: float, n: int, generator: th.Generator) -> th.Tensor:
    """
    Samples of the behavior times ``exp(Q / beta)`` by rejection, which is exact because Q has a known bound.

    :param beta: temperature
    :param n: number of actions
    :param generator: source of randomness
    :return: ``(n, 2)``
    """
    accepted: list[th.Tensor] = []
    while sum(map(len, accepted)) < n:
        proposals = behavior_samples(250_000, generator)
        threshold = ((action_value(proposals) - _HIGHEST_VALUE) / beta).exp()
        accepted.append(proposals[th.rand(len(proposals), generator=generator) < threshold])
    return th.cat(accepted)[:n]


def exact_log_density(beta: float, actions: th.Tensor) -> th.Tensor:
    """
    :param beta: temperature
    :param actions: ``(n, 2)``
    :return: log-density of the exact policy up to a constant, ``(n,)``
    """
    distances = ((actions.unsqueeze(1) - _MEANS) / _STDS.unsqueeze(1)).square().sum(dim=2)  # (n, n_modes)
    log_parts = _WEIGHTS.log() - 2.0 * _STDS.log() - 0.5 * distances
    return log_parts.logsumexp(dim=1) + action_value(actions) / beta


def mean_distance(x: th.Tensor, y: th.Tensor | None = None) -> float:
    """
    Mean Euclidean distance between rows, over all pairs.

    :param x: ``(n, dim)``
    :param y: ``(m, dim)``; None for the pairs of different rows of ``x``
    """
    # Matrix products would be faster, but their round-off swamps small distances.
    others = x if y is None else y
    total = sum(
        th.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").sum(dtype=th.float64).item()
        for rows in x.split(1000)
    )
    return total / (len(x) * (len(x) - 1 if y is None else len(y)))


def energy_distance(x: th.Tensor, y: th.Tensor, distance_within_y: float | None = None) -> float:
    r"""
    Unbiased estimate of :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` (Székely & Rizzo 2013), which is zero if and only if both
    distributions are equal. It grows with the scale of the data, and by chance the estimate may be slightly negative.

    :param x: samples, ``(n, dim)``
    :param y: samples, ``(m, dim)``
    :param distance_within_y: ``mean_distance(y)`` if it is known
    """
    within_y = mean_distance(y) if distance_within_y is None else distance_within_y
    return 2.0 * mean_distance(x, y) - mean_distance(x) - within_y


def fit_behavior(actions: th.Tensor, seed: int, gradient_steps: int = 4000) -> DiffusionModel:
    """
    :param actions: of the behavior, ``(n, 2)``
    :param seed: seed of the model
    :param gradient_steps: each on 512 actions
    :return: a model of the behavior
    """
    model = DiffusionModel(2, seed=seed, **_NETWORK)  # type: ignore[arg-type]
    # What the model strays from the modes is small, but e^(Q/beta) may multiply it by thousands: fit it well.
    _descend(model, gradient_steps, 1e-2, lambda: model.fit(actions[_rows(model, actions, 512)]))
    return model


def fit_weighted(candidates: th.Tensor, beta: float, seed: int, gradient_steps: int = 2000) -> DiffusionModel:
    """
    Score matching of the candidates, each weighted by a softmax of Q / beta over the minibatch.

    :param candidates: samples of the model of the behavior, ``(n, 2)``
    :param beta: temperature
    :param seed: seed of the model
    :param gradient_steps: each on 512 candidates
    :return: a model of the improved policy
    """
    model = DiffusionModel(2, seed=seed, **_NETWORK)  # type: ignore[arg-type]
    scaled = action_value(candidates) / beta

    def step() -> None:
        rows = _rows(model, candidates, 512)
        model.fit(candidates[rows], weight=len(rows) * scaled[rows].softmax(dim=0))

    _descend(model, gradient_steps, 1e-2, step)
    return model


def fit_energy(
    candidates: th.Tensor, beta: float, seed: int, gradient_steps: int = 2000, n_candidates: int = 64
) -> EnergyModel:
    """
    Contrastive energy prediction (CEP).

    :param candidates: samples of the model of the behavior, ``(n, 2)``
    :param beta: temperature
    :param seed: seed of the model
    :param gradient_steps: each on 16 sets of candidates
    :param n_candidates: candidates in a set, which are told apart by their energies
    :return: an energy whose gradient guides the model of the behavior to the improved policy
    """
    # Q is smoother than the behavior: with its frequencies the gradient of the energy ripples.
    energy = EnergyModel(2, net_arch=(128, 128), frequencies=(1.5, 3.0), ema_rate=0.995, seed=seed)
    scaled = action_value(candidates) / beta

    def step() -> None:
        rows = _rows(energy, candidates, 16 * n_candidates).view(16, n_candidates)
        energy.fit(candidates[rows], scaled[rows])

    _descend(energy, gradient_steps, 5e-3, step)
    return energy


def fit_distilled(
    behavior: DiffusionModel, energy: EnergyModel, candidates: th.Tensor, seed: int, gradient_steps: int = 1000
) -> DiffusionModel:
    """
    A single network that predicts the noise as the guided one does (ExDM, arXiv 2502.07279, algorithm 2).

    :param behavior: model of the behavior
    :param energy: its guidance
    :param candidates: samples of the model of the behavior, ``(n, 2)``
    :param seed: seed of the training noise
    :param gradient_steps: each on 512 candidates
    :return: a model of the improved policy, which begins as a copy of the one of the behavior
    """
    model = DiffusionModel(2, seed=seed, **_NETWORK)  # type: ignore[arg-type]
    model.load_state_dict(behavior.state_dict())

    @th.no_grad()
    def guided(x_t: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
        _, sigma = behavior.levels(log_snr)
        return behavior.predict_noise(x_t, log_snr) - sigma.unsqueeze(1) * energy.gradient(x_t, log_snr)

    _descend(model, gradient_steps, 5e-3, lambda: model.fit(candidates[_rows(model, candidates, 512)], target=guided))
    return model


@th.no_grad()
def draw(model: DiffusionModel, n: int, energy: EnergyModel | None = None) -> th.Tensor:
    """
    :param model: what to sample
    :param n: number of actions
    :param energy: guidance
    :return: ``(n, 2)``
    """
    # Coarser steps leave samples between the modes.
    guidance = None if energy is None else energy.gradient
    return model.sample(n, n_sampling_steps=25, grid="quadratic", guidance=guidance)


def run_bandit(
    seeds: Sequence[int] = range(3),
    out: str | Path | None = None,
    effort: float = 1.0,
    betas: Sequence[float] = tuple(TARGETS),
) -> str:
    """
    Measure how far the samples of every method are from those of the exact policy.

    :param seeds: each is another set of behavior actions and other initializations
    :param out: folder for ``bandit.csv``, ``bandit.md`` and, if matplotlib is installed, ``bandit.png``; None writes nothing
    :param effort: factor of all numbers of gradient steps; less than 1 for a quick look
    :param betas: temperatures
    :return: the table in Markdown
    :raises ValueError: if there are no seeds or betas, or for numbers that are not positive
    """
    seeds = check_seeds(seeds)
    if not len(betas) or min(betas) <= 0.0:
        raise ValueError(f"betas must be positive, and at least one, got {list(betas)}.")
    if effort <= 0.0:
        raise ValueError(f"effort must be positive, got {effort}.")
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    rows: list[dict[str, str | float | int]] = []
    pictures: dict[float, dict[str, th.Tensor]] = {}
    try:
        reference = _References()
        for seed in tqdm(seeds, unit="seed", disable=None):
            samples = _run_seed(seed, betas, effort, reference, rows)
            pictures = pictures or samples
    finally:
        th.set_num_threads(n_threads)
    report = _report(rows, betas, len(seeds))
    if out is not None:
        write_csv(Path(out) / "bandit.csv", rows)
        write_text(Path(out) / "bandit.md", report)
        if importlib.util.find_spec("matplotlib"):
            plot_bandit(Path(out) / "bandit.png", pictures)
    return report


def plot_bandit(path: str | Path, samples: dict[float, dict[str, th.Tensor]]) -> Path:
    """
    Samples as dots on the exact density: a row for every beta, a column for every kind of samples.

    :param path: the picture; its ending says the format
    :param samples: by beta and by what they are, ``(n, 2)`` each; at most 1000 of them are drawn
    :return: ``path``
    :raises ValueError: if there is nothing to draw, or ``path`` is no picture's
    """
    path = check_picture_path(path)
    if not samples or not all(samples.values()):
        raise ValueError("There are no samples to draw.")
    n_columns = max(map(len, samples.values()))
    figure = new_figure(2.9 * n_columns + 0.3, 2.9 * len(samples) + 0.3)
    panels = figure.subplots(len(samples), n_columns, squeeze=False, sharex=True, sharey=True)
    ticks = th.linspace(-1.1, 1.1, 221)
    grid = th.stack(th.meshgrid(ticks, ticks, indexing="xy"), dim=2).reshape(-1, 2)
    for row, (beta, kinds) in zip(panels, samples.items(), strict=True):
        log_density = exact_log_density(beta, grid).reshape(len(ticks), len(ticks))
        # The square root shows rare modes beside frequent ones.
        density = (0.5 * (log_density - log_density.max())).exp().numpy()
        for axes, (name, actions) in zip(row, kinds.items(), strict=False):
            axes.imshow(density, extent=(-1.1, 1.1, -1.1, 1.1), origin="lower", cmap="Blues", vmin=0.0, vmax=1.2)
            axes.plot(*actions[:1000].T.numpy(), ".", color="#D55E00", markersize=2.5, markeredgewidth=0, alpha=0.7)
            axes.set(title=name, xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
        row[0].set_ylabel(f"β = {_name(beta)}")
        for axes in row[len(kinds) :]:
            axes.set_axis_off()
    figure.suptitle("Dots: samples. Blue: the exact density of the improved policy (its square root)", fontsize=10)
    return save_figure(figure, path)


class _References:
    """Exact samples of every beta and the mean distance within them, computed once."""

    def __init__(self) -> None:
        self._known: dict[float, tuple[th.Tensor, float]] = {}

    def distance(self, samples: th.Tensor, beta: float) -> float:
        """Energy distance to the exact policy; infinite beta stands for the behavior itself."""
        if beta not in self._known:
            exact = exact_samples(beta, _N_REFERENCE, th.Generator().manual_seed(2**31))
            self._known[beta] = (exact, mean_distance(exact))
        return energy_distance(samples, *self._known[beta])


def _run_seed(
    seed: int, betas: Sequence[float], effort: float, references: _References, rows: list[dict[str, str | float | int]]
) -> dict[float, dict[str, th.Tensor]]:
    """Appends the figures to ``rows``; returns samples for the picture."""
    generator = th.Generator().manual_seed(seed)

    def measure(method: str, beta: float, samples: th.Tensor, start: float) -> None:
        seconds = round(time.perf_counter() - start, 1)
        distance = references.distance(samples, beta)
        rows.append({"method": method, "beta": beta, "seed": seed, "energy_distance": distance, "seconds": seconds})

    def steps(n: int) -> int:
        return max(1, round(effort * n))

    start = time.perf_counter()
    behavior = fit_behavior(behavior_samples(_N_DATA, generator), seed, steps(4000))
    candidates = draw(behavior, _N_CANDIDATES)
    own = draw(behavior, _N_SAMPLES)
    measure("behavior", math.inf, own, start)
    pictures: dict[float, dict[str, th.Tensor]] = {}
    for beta in betas:
        start = time.perf_counter()
        measure("exact", beta, exact_samples(beta, _N_SAMPLES, generator), start)
        measure("behavior", beta, own, time.perf_counter())
        start = time.perf_counter()
        weighted = draw(fit_weighted(candidates, beta, seed, steps(2000)), _N_SAMPLES)
        measure("weighted", beta, weighted, start)
        start = time.perf_counter()
        energy = fit_energy(candidates, beta, seed, steps(2000))
        guided = draw(behavior, _N_SAMPLES, energy)
        measure("cep", beta, guided, start)
        start = time.perf_counter()
        distilled = draw(fit_distilled(behavior, energy, candidates, seed, steps(1000)), _N_SAMPLES)
        measure("distilled", beta, distilled, start)
        pictures[beta] = {"behavior": own, "weighted": weighted, "cep": guided}
    return pictures


def _report(rows: list[dict[str, str | float | int]], betas: Sequence[float], n_seeds: int) -> str:
    def cell(method: str, beta: float) -> str:
        values = [float(row["energy_distance"]) for row in rows if (row["method"], row["beta"]) == (method, beta)]
        # Four digits: exact samples differ by less than 0.001.
        mean = f"{np.mean(values):.4f}"
        return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"

    labels = {"exact": "other exact samples", "behavior": "behavior, not improved"}
    labels |= {name: f"{name}: {meaning}" for name, meaning in METHODS.items()}
    table = [[label, *(cell(method, beta) for beta in betas)] for method, label in labels.items()]
    table.append(["target", *(f"{TARGETS[beta]:.4f}" if beta in TARGETS else "–" for beta in betas)])
    seconds = {name: np.mean([float(row["seconds"]) for row in rows if row["method"] == name]) for name in METHODS}
    return (
        f"Energy distance of {_N_SAMPLES:,} samples to {_N_REFERENCE:,} of the exact policy, "
        f"{'mean ± standard deviation of ' if n_seeds > 1 else ''}{n_seeds} seed{'s' if n_seeds > 1 else ''}:\n\n"
        + markdown_table(["", *(f"β = {_name(beta)}" for beta in betas)], table)
        + f"\n\nThe model of the behavior is {cell('behavior', math.inf)} from the behavior. "
        + "Seconds per fit and its samples, one thread: "
        + ", ".join(f"{name} {mean:.0f}" for name, mean in seconds.items())
        + "."
    )


def _descend(
    model: DiffusionModel | EnergyModel, gradient_steps: int, learning_rate: float, step: Callable[[], object]
) -> None:
    for i in range(gradient_steps):
        set_learning_rate(model.optimizer, learning_rate * cosine_decay(i / gradient_steps))
        step()


def _rows(model: DiffusionModel | EnergyModel, actions: th.Tensor, n: int) -> th.Tensor:
    return th.randint(len(actions), (n,), generator=model.generator)


def _name(beta: float) -> str:
    return "1/3" if math.isclose(beta, 1 / 3) else f"{beta:g}"
