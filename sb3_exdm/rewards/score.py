"""Intrinsic rewards of ExDM and EDP: denoising error of a diffusion model of states, or of actions given states."""

import math
import warnings
from typing import Annotated, Any, Literal, NamedTuple

import torch as th
from gymnasium import spaces

from sb3_exdm.common.validation import Between, LearningRate, NetArch, NFrequencies, check_choice
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.corrected_error import CorrectedDenoisingError
from sb3_exdm.rewards.denoising_error import DenoisingError
from sb3_exdm.rewards.features import StateFeatures, default_frequencies
from sb3_exdm.rewards.noise_range import NoiseRange
from sb3_exdm.rewards.registry import register_reward

LOST_RANKING = 0.1
"""Rank correlation with the distance between neighbors below which :class:`ScoreModel` warns; 0.4 to 0.9 is usual."""
REVERSED_RANKING = -0.3
"""The same for states of nearly uniform density, which nothing can rank: only a reversed order is a sign of failure."""
RANKABLE = 0.5
"""
Rank correlation between distances to neighbors in two halves of the states, above which their density differs enough to be
ranked. It is 0.6 to 0.9 for Gaussians and early in exploration, 0.1 to 0.5 late in the mazes, and about 0.1 in mazes visited
uniformly.
"""


@register_reward("score")
class ScoreModel(FittedReward):
    r"""
    Denoising error of a diffusion model that is fitted to the visited states during exploration.

    ``kind="state"`` (ExDM, arXiv 2502.07279, eq. 8): :math:`R(s) = E_{t,\epsilon}\|\hat\epsilon(s_t, t) - \epsilon\|^2`.
    ``kind="action"`` (EDP, version 1 of the same paper): the error of a model of the policy,
    :math:`R(s, a) = E_{t,\epsilon}\|\hat\epsilon(a_t, t \mid s) - \epsilon\|^2`.

    Averaged over noise levels that are evenly spaced in the log signal-to-noise ratio, the error is an upper bound on
    :math:`-\log p(s)` up to a constant (Kingma et al. 2021, arXiv 2107.00630); therefore it ranks states by rarity.
    Three choices keep the ranking sharp with few network evaluations:

    - **The same noises for all states.** Levels and directions are drawn once, so that two errors differ by their states
      alone. Directions are orthogonal and come in pairs :math:`\pm\epsilon`, which cancels the part of the error that is odd
      in the noise.
    - **Noise levels that follow the data**, see :class:`~sb3_exdm.rewards.noise_range.NoiseRange`.
    - **Averaged weights** for scoring, so that the reward does not fluctuate with the minibatches.

    In more than eight dimensions, one wide hidden layer replaces the two: it is what a map between so many dimensions needs,
    and its divergence is exact, which stands in for most noises, see
    :class:`~sb3_exdm.rewards.corrected_error.CorrectedDenoisingError`.

    The ranking is checked while fitting: :attr:`ranking` is the rank correlation of the score with the distance to the
    nearest neighbors among 512 recent states, an estimate of rarity without a model. :meth:`fit` returns it as
    ``score_ranking`` and warns when it is lost. Where the states are nearly uniform, the distances are those of chance and
    the ranking tends to zero; only a reversed ranking is reported then.

    >>> import numpy as np
    >>> from gymnasium import spaces
    >>> model = ScoreModel(spaces.Box(-np.inf, np.inf, (2,)), seed=0, device="cpu")
    >>> states = np.random.default_rng(0).normal(size=(100, 256, 2))
    >>> metrics = [model.fit(batch) for batch in states]
    >>> common, rare = model.reward([[0.0, 0.0], [4.0, 4.0]])
    >>> bool(rare > common)
    True

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: needed for ``kind="action"``
    :param kind: ``"state"`` or ``"action"``
    :param n_levels: number of noise levels; by default three in one or two dimensions, four in more
    :param n_noises: number of noises per level, even, because they come in pairs; by default four, two with an exact
        divergence. A score takes ``n_levels * n_noises`` evaluations of the network per state
    :param net_arch: widths of the hidden layers; by default two of 32, one of 256 for more than eight dimensions (two of 128
        with a condition), one of 512 for more than 32
    :param n_frequencies: octaves of sines and cosines of the noisy data in the input of the network, and of the state that
        actions are conditioned on, 0 for none; by default five in low dimension, see
        :func:`~sb3_exdm.rewards.features.default_frequencies`
    :param learning_rate: learning rate of Adam; by default 1e-2, 8e-3 for one layer of 256, 2e-3 for two of 128, 4e-3 for one
        of 512
    :param ema_rate: rate of the moving average of the weights; by default 0.9 for two layers of 32, 0.99 for others. 0.99 lags
        behind the agent by some 800 transitions: early in SquareLarge, the rank correlation with the distance to neighbors
        over the states reached last is 0.33, with 0.9 it is 0.59
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "score"
    reward_transform = "sqrt_exp"
    noises: th.Tensor
    _ranking: th.Tensor
    _n_lost: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        kind: Literal["state", "action"] = "state",
        n_levels: Annotated[int, Between(1, 1024)] | None = None,
        n_noises: Annotated[int, Between(2, 1024)] | None = None,
        net_arch: NetArch | None = None,
        n_frequencies: NFrequencies | None = None,
        learning_rate: LearningRate | None = None,
        ema_rate: Annotated[float, Between(0.0, 1.0, open_high=True)] | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("kind", kind, ("state", "action"))
        if n_noises is not None and n_noises % 2:
            raise ValueError(f"n_noises must be even, got {n_noises}.")
        self.needs_actions = kind == "action"
        super().__init__(observation_space, action_space, **kwargs)
        self.kind = kind
        dim = self._encode_actions.dim if self.needs_actions else self.observation_dim
        self.condition_features: StateFeatures | None = None
        if self.needs_actions:
            self.condition_features = StateFeatures(self.observation_dim, n_frequencies, self.device)
        default = _default_network(dim, self.observation_dim if self.needs_actions else 0)
        self.noise_range = NoiseRange(dim, n_frequencies=default_frequencies(dim, n_frequencies), device=self.device)
        self.model = DiffusionModel(
            dim,
            0 if self.condition_features is None else self.condition_features.width,
            net_arch=net_arch or default.net_arch,
            frequencies=self.noise_range.frequencies.tolist(),
            learning_rate=learning_rate or default.learning_rate,
            ema_rate=default.ema_rate if ema_rate is None else ema_rate,
            seed=self.seed,
            device=self.device,
        )
        if n_noises is None:
            n_noises = 2 if CorrectedDenoisingError.supports(self.model.network) else 4
        noises = self._draw_noises(n_levels or (3 if dim <= 2 else 4), n_noises, dim)
        self.register_buffer("noises", noises)  # (n_levels, n_noises, dim)
        self.register_buffer("_ranking", th.ones((), dtype=th.float64))
        self.register_buffer("_n_lost", th.zeros((), dtype=th.int64))
        self._apply_noise_range()

    @property
    def n_evaluations(self) -> int:
        """Number of evaluations of the network for the score of one state."""
        return self.noises.shape[0] * self.noises.shape[1]

    @property
    def ranking(self) -> float:
        """Last measured rank correlation of the score with the distance between neighbors; 1 before."""
        return self._ranking.item()

    def _draw_noises(self, n_levels: int, n_noises: int, dim: int) -> th.Tensor:
        """Draw pairs of opposite noises of the typical length sqrt(dim), orthogonal as far as the dimension allows."""
        n_directions = n_levels * n_noises // 2
        blocks = []
        for _ in range(math.ceil(n_directions / dim)):
            random = th.randn(dim, min(dim, n_directions), generator=self.generator, device=self.device)
            basis, _ = th.linalg.qr(random)  # orthonormal columns
            blocks.append(basis.T)
        directions = th.cat(blocks)[:n_directions] * math.sqrt(dim)  # (n_directions, dim)
        return th.stack([directions, -directions], dim=1).reshape(n_levels, n_noises, dim)

    def _apply_noise_range(self) -> None:
        """Set the noise levels and frequencies of the model to those of the noise range."""
        self.model.noise_ratios = self.noise_range.range
        for network in (self.model.network, self.model.average):
            network.features.frequencies.copy_(self.noise_range.frequencies)
        n_levels = len(self.noises)
        # Midpoints of equal cells of the log-ratio, so that the ends of the range do not have double weight.
        low, high = (math.log(ratio) for ratio in self.noise_range.range)
        cells = (th.arange(n_levels, device=self.device) + 0.5) / n_levels
        self._log_snr = -(low + (high - low) * cells)  # (n_levels,)
        network = self.model.average
        level_features = network.noise_level(self._log_snr)
        alpha, sigma = self.model.levels(self._log_snr)
        self._denoising_error: DenoisingError | CorrectedDenoisingError
        if CorrectedDenoisingError.supports(network):
            self._denoising_error = CorrectedDenoisingError(self.noises, alpha, sigma, level_features)
        else:
            self._denoising_error = DenoisingError(self.noises, alpha, sigma, level_features, network.features.frequencies)
        self._has_changed = True

    def _data(self, observations: th.Tensor, actions: th.Tensor | None) -> tuple[th.Tensor, th.Tensor | None]:
        """Data ``(batch, dim)`` of the diffusion model, and what they are conditioned on ``(batch, condition_dim)``."""
        if self.condition_features is None or actions is None:
            return observations, None
        return actions, self.condition_features(observations)

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        data, condition = self._data(observations, actions)
        if self.noise_range.update(data):
            if condition is None:
                self._check_ranking()
            self._apply_noise_range()
        self._has_changed = True
        metrics = {"score_loss": self.model.fit(data, condition).item()}
        return metrics if condition is not None else {**metrics, "score_ranking": self.ranking}

    @th.no_grad()
    def _check_ranking(self) -> None:
        """Compare the score with the distance between neighbors; warn when they have disagreed three times in a row."""
        rarity = self.noise_range.neighbor_distances(n_neighbors=8)
        if (rarity > 0).sum() < len(rarity) // 2:
            return  # mostly repeated states, whose distances carry no information
        score = self._score_batch(self.noise_range.reference, None)
        self._ranking.fill_(_rank_correlation(score, rarity))
        # Two estimates of rarity from different neighbors agree as far as there are differences in density.
        halves = [self.noise_range.neighbor_distances(n_neighbors=4, among=slice(start, None, 2)) for start in (0, 1)]
        least = LOST_RANKING if _rank_correlation(*halves) > RANKABLE else REVERSED_RANKING
        self._n_lost.fill_(self._n_lost.item() + 1 if self.ranking < least else 0)
        if self._n_lost.item() == 3:
            warnings.warn(
                f"The score no longer ranks states by rarity (rank correlation {self.ranking:.2f} with the distance between "
                f"neighbors). Fit it more often (train_freq, gradient_steps), or look for a dimension of the observation "
                "that is pure noise or keeps growing, such as a clock.",
                UserWarning,
                stacklevel=4,
            )

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        data, condition = self._data(observations, actions)
        if self._has_changed:
            self._denoising_error.set_network(self.model.average)
            self._has_changed = False
        return self._denoising_error.errors(data, condition)

    def _extra_state(self) -> dict[str, Any]:
        return self.model.training_state()

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.model.load_training_state(state)
        self._apply_noise_range()

    def recompute(self) -> None:
        """Set the noise levels to those of the restored noise range."""
        self._apply_noise_range()


class _Network(NamedTuple):
    """Widths of the hidden layers, and what goes with them."""

    net_arch: list[int]
    learning_rate: float
    ema_rate: float


def _default_network(dim: int, condition_dim: int) -> _Network:
    if dim > 32:
        return _Network([512], 4e-3, 0.99)
    if dim + condition_dim <= 8:
        return _Network([32, 32], 1e-2, 0.9)
    return _Network([256], 8e-3, 0.99) if condition_dim == 0 else _Network([128, 128], 2e-3, 0.99)


def _rank_correlation(first: th.Tensor, second: th.Tensor) -> float:
    """Compute Spearman's rank correlation of two vectors ``(n,)``."""
    ranks = th.stack([first, second]).argsort(dim=1).argsort(dim=1).double()
    return th.corrcoef(ranks)[0, 1].item()


@register_reward("edp")
class ActionScoreModel(ScoreModel):
    """
    :class:`ScoreModel` with ``kind="action"`` (EDP).

    :param observation_space: see :class:`ScoreModel`
    :param action_space: required
    :param kwargs: see :class:`ScoreModel`
    """

    name = "edp"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        kind: Literal["action"] = "action",
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, kind=kind, **kwargs)
