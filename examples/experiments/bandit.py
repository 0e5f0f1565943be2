"""
Improve a policy where the answer is known: a bandit with a known optimal policy.

Actions are two-dimensional, the behavior density is a mixture of five Gaussians, and the value is smooth. The improved policy
is ``π ∝ π_d exp(Q / β)`` (ExDM, arXiv 2502.07279, eq. 9), sampled exactly by rejection. The methods are the operators
``weighted`` and ``exdm`` of the library, with their default settings and the networks, batch size, learning rate and sampling
steps of fine-tuning in low dimensions. They see only samples of the diffusion policy that was fitted to the behavior, and
their values; the error is the energy distance of their samples to the exact ones.

Example: python examples/experiments/bandit.py --seeds 0 --effort 0.5 --out runs/bandit
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch as th
import tyro
from gymnasium import spaces
from tqdm.auto import tqdm

from sb3_exdm.benchmark.statistics import mean_interval
from sb3_exdm.benchmark.tables import count, markdown_table, write_text
from sb3_exdm.finetuning.operators import make_operator
from sb3_exdm.finetuning.operators.exdm import ExDM
from sb3_exdm.finetuning.operators.weighted import Weighted
from sb3_exdm.plots.style import check_picture_path, new_figure, save_figure
from sb3_exdm.policies import DiffusionPolicy
from sb3_exdm.runs.hyperparams import PROFILES

TARGETS = {1.0: 0.02, 1.0 / 3.0: 0.01, 0.1: 0.01}
"""Energy distance that the best method should reach, by beta."""
METHODS = {
    "exact": "other exact samples",
    "behavior": "behavior, not improved",
    "weighted": "weighted: score matching, weighted by e^(Q/β)",
    "cep": "exdm: guidance by a contrastive energy",
    "distilled": "exdm: that guidance, distilled",
}
"""Kinds of samples, by name."""

_MEANS = th.tensor([[-0.6, 0.55], [0.6, 0.6], [0.0, 0.0], [-0.55, -0.6], [0.6, -0.5]])
_STDS = th.tensor([0.12, 0.10, 0.08, 0.12, 0.10])
_WEIGHTS = th.tensor([0.30, 0.15, 0.20, 0.20, 0.15])
_HIGHEST_VALUE = 0.95

_N_DATA, _N_CANDIDATES = 100_000, 32_768
_N_SAMPLES, _N_REFERENCE = 4_000, 20_000
_PROFILE = PROFILES["low_dim"]


def behavior_samples(n: int, generator: th.Generator) -> th.Tensor:
    """
    Sample the behavior; 3 actions in 10,000 lie outside of [-1, 1].

    :param n: number of actions
    :param generator: source of randomness
    :return: ``(n, 2)``
    """
    chosen = th.multinomial(_WEIGHTS, n, replacement=True, generator=generator)
    return _MEANS[chosen] + _STDS[chosen].unsqueeze(1) * th.randn(n, 2, generator=generator)


def action_value(actions: th.Tensor) -> th.Tensor:
    """
    Evaluate Q, which is at most 0.95. The best mode is not the most frequent one.

    :param actions: ``(n, 2)``
    :return: ``(n,)``
    """
    x, y = actions.unbind(dim=1)
    return 0.6 * (2.0 * y).sin() + 0.3 * (3.0 * x).cos() + 0.05 * (2.0 * x).sin()


def exact_samples(beta: float, n: int, generator: th.Generator) -> th.Tensor:
    """
    Sample the behavior times ``exp(Q / beta)`` by rejection, which is exact because Q has a known bound.

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
    Log-density of the exact policy, up to a constant.

    :param beta: temperature
    :param actions: ``(n, 2)``
    :return: ``(n,)``
    """
    distances = ((actions.unsqueeze(1) - _MEANS) / _STDS.unsqueeze(1)).square().sum(dim=2)  # (n, n_modes)
    log_parts = _WEIGHTS.log() - 2.0 * _STDS.log() - 0.5 * distances
    return log_parts.logsumexp(dim=1) + action_value(actions) / beta


def mean_distance(x: th.Tensor, y: th.Tensor | None = None) -> float:
    """
    Mean Euclidean distance over all pairs.

    :param x: ``(n, dim)``
    :param y: ``(m, dim)``; None for the pairs of different points of ``x``
    """
    # Matrix products would be faster, but their round-off swamps small distances.
    others = x if y is None else y
    total = sum(
        th.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").sum(dtype=th.float64).item()
        for part in x.split(1000)
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


def fit_behavior(actions: th.Tensor, seed: int, gradient_steps: int = 3000) -> DiffusionPolicy:
    """
    Fit a diffusion policy to the behavior, as pre-training does.

    :param actions: actions of the behavior, ``(n, 2)``
    :param seed: seed of the policy
    :param gradient_steps: number of gradient steps, each on 512 actions
    """
    policy = _new_policy(seed)
    policy.actor.fit(th.zeros(len(actions), 1).numpy(), actions.numpy(), gradient_steps)
    policy.behavior.load_state_dict(policy.actor.model.state_dict())
    return policy


def improve(
    policy: DiffusionPolicy, operator: str, candidates: th.Tensor, beta: float, seed: int, gradient_steps: int = 2000
) -> ExDM | Weighted:
    """
    Improve a copy of a policy with an operator, whose energies are the known Q / beta.

    :param policy: diffusion policy of the behavior
    :param operator: ``"exdm"`` or ``"weighted"``
    :param candidates: samples of the policy, ``(n, 2)``, of which every minibatch draws as many as the operator caches
    :param beta: temperature
    :param seed: seed of the copy and the operator
    :param gradient_steps: number of updates
    :return: operator with the improved policy
    """
    copy = _new_policy(seed)
    for model in (copy.actor.model, copy.behavior):
        model.load_state_dict(policy.behavior.state_dict())
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        made = make_operator(operator, copy, learning_rate=_PROFILE.finetune_learning_rate)
    assert isinstance(made, (ExDM, Weighted))
    generator = th.Generator().manual_seed(seed)
    energies = action_value(candidates) / beta
    shape = (_PROFILE.finetune_batch_size, made.n_cached_actions)
    features = copy.features(th.zeros(shape[0], 1))
    for _ in range(gradient_steps):
        drawn = th.randint(len(candidates), shape, generator=generator)
        made.improve(features, candidates[drawn], energies[drawn])
    return made


@th.no_grad()
def draw(policy: DiffusionPolicy, n: int, operator: ExDM | None = None) -> th.Tensor:
    """
    Sample a policy with its own number of sampling steps.

    :param policy: policy
    :param n: number of actions
    :param operator: operator whose energy guides the pre-trained policy; by default the actor is sampled
    :return: ``(n, 2)``
    """
    features = policy.features(th.zeros(n, 1))
    if operator is None:
        return policy.actor.sample_actions(features, 1)[:, 0]
    return policy.behavior.sample(
        n,
        features,
        n_sampling_steps=policy.n_sampling_steps,
        grid=policy.actor.config["grid"],
        guidance=lambda x_t, log_snr: operator.energy.gradient(x_t, log_snr, features),
    ).clamp(-1.0, 1.0)


def run_bandit(
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path | None = None,
    effort: float = 1.0,
    betas: tuple[float, ...] = tuple(TARGETS),
) -> str:
    """
    Measure the energy distance of the samples of every method to those of the exact policy.

    :param seeds: seeds of the behavior actions and of the models
    :param out: folder for bandit.csv, bandit.md and bandit.png; by default nothing is written
    :param effort: factor of all numbers of gradient steps; less than 1 for a quick look
    :param betas: temperatures: the smaller, the greedier
    :return: table in Markdown
    :raises ValueError: if there are no seeds or betas, or for numbers that are not positive
    """
    if not seeds:
        raise ValueError("seeds must name at least one.")
    if not betas or min(betas) <= 0.0:
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
    figures = pd.DataFrame(rows)
    report = _report(figures, betas)
    if out is not None:
        write_text(out / "bandit.csv", figures.to_csv(index=False))
        write_text(out / "bandit.md", report)
        plot_bandit(out / "bandit.png", pictures)
    return report


def plot_bandit(path: str | Path, samples: dict[float, dict[str, th.Tensor]]) -> Path:
    """
    Plot samples as dots on the exact density, a row for every beta and a column for every kind of samples.

    :param path: file; its extension chooses the format
    :param samples: samples by beta and kind, ``(n, 2)`` each, of which 1000 at most are drawn
    :return: ``path``
    :raises ValueError: if there are no samples, or the format is unknown
    """
    path = check_picture_path(path)
    if not samples or not all(samples.values()):
        raise ValueError("There are no samples to plot.")
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
    """Append the figures to ``rows``; returns samples for the picture."""
    generator = th.Generator().manual_seed(seed)

    def measure(method: str, beta: float, samples: th.Tensor, start: float) -> None:
        seconds = round(time.perf_counter() - start, 1)
        distance = references.distance(samples, beta)
        rows.append({"method": method, "beta": beta, "seed": seed, "energy_distance": distance, "seconds": seconds})

    def steps(n: int) -> int:
        return max(1, round(effort * n))

    start = time.perf_counter()
    behavior = fit_behavior(behavior_samples(_N_DATA, generator), seed, steps(3000))
    candidates = draw(behavior, _N_CANDIDATES)
    own = draw(behavior, _N_SAMPLES)
    measure("behavior", math.inf, own, start)
    pictures: dict[float, dict[str, th.Tensor]] = {}
    for beta in betas:
        start = time.perf_counter()
        measure("exact", beta, exact_samples(beta, _N_SAMPLES, generator), start)
        measure("behavior", beta, own, time.perf_counter())
        start = time.perf_counter()
        weighted = draw(improve(behavior, "weighted", candidates, beta, seed, steps(2000)).policy, _N_SAMPLES)
        measure("weighted", beta, weighted, start)
        start = time.perf_counter()
        exdm = improve(behavior, "exdm", candidates, beta, seed, steps(2000))
        assert isinstance(exdm, ExDM)
        guided = draw(exdm.policy, _N_SAMPLES, exdm)
        measure("cep", beta, guided, start)
        start = time.perf_counter()
        measure("distilled", beta, draw(exdm.policy, _N_SAMPLES), start)
        pictures[beta] = {"behavior": own, "weighted": weighted, "cep": guided}
    return pictures


def _report(figures: pd.DataFrame, betas: Sequence[float]) -> str:
    def cell(method: str, beta: float) -> str:
        mask = (figures["method"] == method) & (figures["beta"] == beta)
        # Four digits: exact samples differ by less than 0.001.
        mean, low, high = mean_interval(figures.loc[mask, "energy_distance"].to_numpy())
        return f"{mean:.4f}" + ("" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]")

    cells = pd.DataFrame({f"β = {_name(beta)}": {name: cell(name, beta) for name in METHODS} for beta in betas})
    cells.loc["target"] = [f"{TARGETS[beta]:.4f}" if beta in TARGETS else "–" for beta in betas]
    # The distilled policy is fitted together with the energy.
    fitted = figures[figures["method"].isin(("weighted", "cep"))]
    seconds = fitted.groupby("method", sort=False)["seconds"].mean()
    return (
        f"Energy distance of {_N_SAMPLES:,} samples to {_N_REFERENCE:,} of the exact policy, mean over "
        f"{count(figures['seed'].nunique(), 'seed')} with a 95 % interval of Student's t:\n\n"
        + markdown_table(cells.rename(index=METHODS).rename_axis("samples"))
        + f"\n\nThe model of the behavior is {cell('behavior', math.inf)} from the behavior. Seconds to fit and sample, one "
        + f"thread: {', '.join(f'{name} {mean:.0f}' for name, mean in seconds.items())}."
    )


def _new_policy(seed: int) -> DiffusionPolicy:
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        return DiffusionPolicy(
            spaces.Box(0.0, 1.0, (1,)),
            spaces.Box(-1.0, 1.0, (2,)),
            lambda _: _PROFILE.finetune_learning_rate,
            net_arch=list(_PROFILE.net_arch),
        )


def _name(beta: float) -> str:
    return "1/3" if math.isclose(beta, 1 / 3) else f"{beta:g}"


if __name__ == "__main__":
    print(tyro.cli(run_bandit, description=__doc__))
