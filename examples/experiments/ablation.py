"""
Ablation from the reward of ExDM's authors to the score of this library, one factor after another, by state coverage in mazes.

The first run is exdm-paper, every further one replaces one more of its choices by that of score, the last is score:

    reached          reward the state that was reached, not the one that was left
    whitening        whiten observations
    dropout          no dropout, neither while fitting nor while scoring
    parametrization  predict the velocity, from an encoded signal-to-noise ratio, and start at zero
    features         sines and cosines of the noisy state
    bank             as many draws as before, but the same for all states: evenly spaced times, noises in opposite pairs
    range            noise levels that follow the data, few and evenly spaced in the log signal-to-noise ratio; so do features
    averaging        score with averaged weights
    transform        center the reward by moving moments (mazes are explored with the result as it is)
    network          the plain layers and the learning rate of score instead of three residual blocks of 256 at 1e-4

The network of the authors takes most of the time: two hours for 100,000 steps on one core. With network as the first
factor the chain starts from exdm-paper with a small network, which has no dropout, and the other runs take minutes:

Example: python examples/experiments/ablation.py --factors network reached whitening parametrization features bank range
    averaging transform --seeds 10 11 12

Complete runs are not repeated, so an interrupted chain goes on where it was. Writes runs.csv and results.md.
"""

import itertools
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch as th
import tyro
from gymnasium import spaces
from torch import nn
from tyro.conf import arg

from sb3_exdm.benchmark.base import Benchmark, Folder, Mazes
from sb3_exdm.benchmark.plan import PlannedRun, short_name
from sb3_exdm.benchmark.statistics import RATE_INTERVAL, mean_interval
from sb3_exdm.benchmark.tables import NOTHING, count, interval_cell, interval_table, markdown_table, score_matrix, write_text
from sb3_exdm.common.running_moments import RunningMoments
from sb3_exdm.common.validation import check_choice
from sb3_exdm.diffusion import NoisePredictor, VPSchedule, denoising_error
from sb3_exdm.diffusion.schedule import levels, stratified_levels
from sb3_exdm.envs import MazeLayout
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.exdm_paper import SCORED_AT_ONCE, ScoreNetwork, StateHash, apply_layers
from sb3_exdm.rewards.features import MAX_DIM, StateFeatures
from sb3_exdm.rewards.registry import register_reward
from sb3_exdm.rewards.score import ScoreModel
from sb3_exdm.runs.config import Positive, PretrainConfig
from sb3_exdm.runs.folder import RunFolder

FACTORS = (
    "reached",
    "whitening",
    "dropout",
    "parametrization",
    "features",
    "bank",
    "range",
    "averaging",
    "transform",
    "network",
)
N_DRAWS, NET_ARCH, DROPOUT, LEARNING_RATE = 20, (256, 256, 256), 0.1, 1e-4
"""Settings of ``exdm-paper``."""


@register_reward("ablation")
class AblationReward(FittedReward):
    """
    Denoising error between two rewards: :class:`~sb3_exdm.rewards.exdm_paper.PaperScoreReward` without factors, the default
    :class:`~sb3_exdm.rewards.score.ScoreModel` with all of them. Written for comparison, not for speed.

    :param observation_space: space of at most :data:`~sb3_exdm.rewards.features.MAX_DIM` dimensions
    :param action_space: not used
    :param factors: names in :data:`FACTORS` of the choices of ``score`` that replace those of ``exdm-paper``
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "ablation"
    n_fits: th.Tensor
    noises: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        factors: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        for factor in factors:
            check_choice("factor", factor, FACTORS)
        super().__init__(observation_space, action_space, **kwargs)
        dim = self.observation_dim
        if dim > MAX_DIM:
            raise ValueError(f"The ablation is for at most {MAX_DIM} dimensions, where score has Fourier features, got {dim}.")
        self.factors = frozenset(factors)
        self.scores_next = "reached" in factors
        self.reward_transform = ScoreModel.reward_transform if "transform" in factors else "identity"
        if "transform" not in factors:
            self.score_moments = RunningMoments(1, min_weight=0.0, std_floor=1e-8, device=self.device)
        # Its noises, noise range and sizes are those of score.
        n_levels, n_noises = (None, None) if "range" in factors else (N_DRAWS // 2, 2)
        score = ScoreModel(observation_space, n_levels=n_levels, n_noises=n_noises, seed=self.seed, device=self.device)
        self.noise_range = score.noise_range
        self.register_buffer("noises", score.noises)  # (n_levels, n_noises, dim)
        is_plain = "network" in factors
        net_arch: Sequence[int] = NET_ARCH
        if is_plain:
            net_arch = [layer.out_features for layer in score.model.network.velocity if isinstance(layer, nn.Linear)][:-1]
        frequencies: list[float] = []
        if "features" in factors:
            frequencies = (self.noise_range if "range" in factors else StateFeatures(dim)).frequencies.tolist()
        self.schedule = VPSchedule()
        with th.random.fork_rng(devices=[]):
            th.manual_seed(self.seed)
            if "parametrization" in factors:
                network: nn.Module = NoisePredictor(dim, net_arch=net_arch, residual=not is_plain, frequencies=frequencies)
            else:
                network = ScoreNetwork(dim, net_arch, residual=not is_plain, frequencies=frequencies)
        self.network = network.to(self.device)
        self.average = deepcopy(self.network).requires_grad_(False)
        settings: dict[str, Any] = {"lr": LEARNING_RATE}
        if is_plain:
            settings = {key: score.model.optimizer.defaults[key] for key in ("lr", "betas")}
        self.optimizer = th.optim.Adam(self.network.parameters(), **settings, fused=True)
        self.ema_rate = score.model.ema_rate if "averaging" in factors else 0.0
        self.has_dropout = not is_plain and "dropout" not in factors
        self.register_buffer("n_fits", th.zeros((), dtype=th.int64))
        self._hash = StateHash(dim, self.seed, self.device)
        self._draws = th.Generator(device=self.device)
        self._draws.manual_seed(self.seed)

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        return super()._whiten(states) if "whitening" in self.factors else states.float()

    def _log_snr(self, uniform: th.Tensor) -> th.Tensor:
        """Log signal-to-noise ratios of positions in (0, 1), from the least noise to the most."""
        if "range" in self.factors:
            low, high = (math.log(ratio) for ratio in self.noise_range.range)
            return -(low + (high - low) * uniform)
        return self.schedule.log_snr(self.schedule.t_min + (self.schedule.t_max - self.schedule.t_min) * uniform)

    def _errors(
        self, network: nn.Module, states: th.Tensor, log_snr: th.Tensor, noise: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Compute denoising errors ``(batch,)`` of states and noises ``(batch, dim)``."""
        alpha, sigma = levels(log_snr)
        x_t = alpha.unsqueeze(1) * states + sigma.unsqueeze(1) * noise  # (batch, dim)
        if isinstance(network, NoisePredictor):
            velocity = apply_layers(network.velocity, network.inputs(x_t, log_snr), masks)
            predicted = sigma.unsqueeze(1) * x_t + alpha.unsqueeze(1) * velocity
        else:
            predicted = network(x_t, self.schedule.time(log_snr), sigma, masks)
        return denoising_error(predicted, noise)

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        n = len(observations)
        if "range" in self.factors:
            if self.noise_range.update(observations) and "features" in self.factors:
                for network in (self.network, self.average):
                    network.features.frequencies.copy_(self.noise_range.frequencies)  # type: ignore[union-attr,operator]
            high, low = (-math.log(ratio) for ratio in self.noise_range.range)
            log_snr = stratified_levels(low, high, n, self._draws)
        else:
            log_snr = self._log_snr(th.rand(n, generator=self._draws, device=self.device))
        noise = th.randn(observations.shape, generator=self._draws, device=self.device)
        masks = None
        if self.has_dropout:
            uniform = th.rand((n, len(NET_ARCH), NET_ARCH[0]), generator=self._draws, device=self.device)
            masks = (uniform >= DROPOUT) / (1.0 - DROPOUT)
        loss = self._errors(self.network, observations, log_snr, noise, masks).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with th.no_grad():
            for mine, average in zip(self.network.parameters(), self.average.parameters(), strict=True):
                average.lerp_(mine, 1.0 - self.ema_rate)
        self.n_fits += 1
        return {"score_loss": loss.item()}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        with th.no_grad():
            return th.cat([self._score_some(states) for states in observations.split(SCORED_AT_ONCE)])

    def _score_some(self, states: th.Tensor) -> th.Tensor:
        n, dim = states.shape
        if "bank" in self.factors:
            n_levels, n_noises = self.noises.shape[:2]
            positions = (th.arange(n_levels, device=self.device) + 0.5) / n_levels
            position = positions.repeat_interleave(n_noises).repeat(n)
            noise = self.noises.flatten(0, 1).repeat(n, 1)
        else:
            uniform = self._hash.uniform(states, N_DRAWS * (1 + 2 * dim), 2 * self.n_fits).view(n * N_DRAWS, 1 + 2 * dim)
            position = uniform[:, 0]
            radius, angle = uniform[:, 1:].chunk(2, dim=1)
            noise = (-2.0 * radius.log()).sqrt() * (2.0 * th.pi * angle).cos()
        n_draws = len(position) // n
        masks = None
        if self.has_dropout:
            n_units = n_draws * len(NET_ARCH) * NET_ARCH[0]
            masks = self._hash.masks(states, n_units, DROPOUT, 2 * self.n_fits + 1).view(-1, len(NET_ARCH), NET_ARCH[0])
        repeated = states.repeat_interleave(n_draws, dim=0)  # (n * n_draws, dim)
        errors = self._errors(self.average, repeated, self._log_snr(position), noise, masks)
        return errors.view(n, n_draws).mean(dim=1)

    def reward_tensor(self, observations: Any, actions: Any = None) -> th.Tensor:
        """Compute the reward before its transform, centered only with the factor ``transform``; changes nothing."""
        if "transform" in self.factors:
            return super().reward_tensor(observations, actions)
        return self.score_tensor(observations, actions) / self.score_moments.std

    def _extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "draws": self._draws.get_state()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self._draws.set_state(state["draws"].cpu())


@dataclass(kw_only=True)
class AblationBenchmark(Benchmark):
    """Chain of runs from ``exdm-paper`` to ``score`` in mazes, with every seed."""

    out: Folder = Path("runs/ablation")
    """Folder of the runs."""
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED [SEED ...]")] = (10, 11, 12, 13, 14)
    """Seeds of all runs."""
    mazes: Mazes = ("SquareBottleneck", "SquareLarge")
    """Names or env ids of mazes."""
    steps: Positive = 100_000
    """Environment steps of a run."""
    factors: Annotated[tuple[str, ...], arg(metavar=f"{{{','.join(FACTORS)}}} [...]")] = FACTORS
    """Factors, in the order in which they are added."""

    def validate(self) -> None:
        super().validate()
        for factor in self.factors:
            check_choice("factor", factor, FACTORS)
        if len(set(self.factors)) < len(self.factors):
            raise ValueError(f"Every factor can be added once, got {', '.join(self.factors)}.")

    @property
    def chain(self) -> dict[str, dict[str, Any]]:
        """Reward and its arguments by label, in order."""
        chain: dict[str, dict[str, Any]] = {"exdm-paper": {"reward": "exdm-paper"}}
        for i, factor in enumerate(self.factors):
            chain[f"+ {factor}"] = {"reward": "ablation", "reward_kwargs": {"factors": list(self.factors[: i + 1])}}
        if set(FACTORS) - set(self.factors) <= {"dropout"}:  # which the network of score does not have
            chain.popitem()
            chain[f"+ {self.factors[-1]} = score"] = {"reward": "score"}
        return chain

    def plan(self) -> list[PlannedRun[PretrainConfig]]:
        mazes = dict.fromkeys(MazeLayout.load(maze).name for maze in self.mazes)
        runs = []
        for seed in dict.fromkeys(self.seeds):
            for maze in mazes:
                for i, settings in enumerate(self.chain.values()):
                    config = PretrainConfig.make(
                        env_id=f"Maze2d-{maze}-v0",
                        total_timesteps=self.steps,
                        seed=seed,
                        policy_steps=0,
                        checkpoint_freq=0,
                        **settings,
                    )
                    # The name does not depend on the order of factors, so that two chains share their common runs.
                    added = "-".join(name for name in FACTORS if name in self.factors[:i])
                    label = added if config.reward == "ablation" else config.reward
                    runs.append(PlannedRun(self.out / f"{maze}-{label}-{seed}", config))
        return runs

    def report(self, runs: list[PlannedRun[PretrainConfig]]) -> list[str]:
        labels = {_key(settings): label for label, settings in self.chain.items()}
        figures = pd.DataFrame([_figures(run, labels) for run in runs])
        # In the order of the chain, also if the first runs are missing.
        order = {label: i for i, label in enumerate(labels.values())}
        figures = figures.sort_values("method", key=lambda column: column.map(order), kind="stable")
        write_text(self.out / "runs.csv", figures.to_csv(index=False))
        n_seeds = len(set(self.seeds))
        seconds = figures.groupby("method", sort=False)["seconds"].mean().map("{:.0f}".format)
        coverage = interval_table(figures, "coverage", n_seeds).join(seconds.rename("seconds of a run"))
        return [
            f"State coverage after {self.steps:,} steps, one factor after another, mean over {count(n_seeds, 'seed')} with a "
            f"{RATE_INTERVAL}:",
            markdown_table(coverage),
            "Change by every factor, paired over seeds, with a 95 % interval of Student's t:",
            markdown_table(_changes(figures)),
        ]


def _key(settings: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """Identify a reward by its name and factors."""
    return settings["reward"], frozenset(settings.get("reward_kwargs", {}).get("factors", ()))


def _figures(run: PlannedRun[PretrainConfig], labels: dict[tuple[str, frozenset[str]], str]) -> dict[str, Any]:
    """Row of ``runs.csv``."""
    summary = RunFolder(run.folder).summary
    return {
        "task": short_name(run.config.env_id),
        "method": labels[_key(vars(run.config))],
        "seed": run.config.seed,
        **{name: summary[name] for name in ("timesteps", "coverage", "coverage_of_ceiling", "seconds")},
        "folder": run.folder.name,
    }


def _changes(figures: pd.DataFrame) -> pd.DataFrame:
    """Cells of the differences between every run of the chain and the one before it."""
    methods = list(figures["method"].unique())
    matrices = {method: score_matrix(figures, method, "coverage") for method in methods}
    cells = {}
    for before, after in itertools.pairwise(methods):
        change = matrices[after] - matrices[before]
        columns: dict[Any, np.ndarray] = {task: values.dropna().to_numpy() for task, values in change.items()}
        if change.shape[1] > 1:
            columns["all"] = change.dropna().mean(axis=1).to_numpy()
        cells[after] = {
            task: interval_cell(mean_interval(values), "+") if len(values) else NOTHING for task, values in columns.items()
        }
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("added factor")


if __name__ == "__main__":
    print(tyro.cli(AblationBenchmark, description=__doc__).run())
