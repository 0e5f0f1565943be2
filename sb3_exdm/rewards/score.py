"""The intrinsic rewards of ExDM and EDP: how badly a diffusion model denoises a state, or an action in a state."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces

from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.denoising_error import DenoisingError
from sb3_exdm.rewards.noise_range import NoiseRange

LOST_RANKING = 0.1
"""Rank correlation with the distance between neighbors below which :class:`ScoreModel` warns; 0.4 to 0.9 is usual."""


class ScoreModel(FittedReward):
    r"""
    Denoising error of a diffusion model that is fitted to the visited states while they are visited.

    ``kind="state"`` (ExDM, arXiv 2502.07279, eq. 8): :math:`R(s) = E_{t,\epsilon}\|\hat\epsilon(s_t, t) - \epsilon\|^2`.
    ``kind="action"`` (EDP, version 1 of the same paper): the error of a model of the policy,
    :math:`R(s, a) = E_{t,\epsilon}\|\hat\epsilon(a_t, t \mid s) - \epsilon\|^2`.

    Averaged over noise levels that are evenly spaced in the log signal-to-noise ratio, the error is an upper bound on
    :math:`-\log p(s)` up to a constant (Kingma et al. 2021, arXiv 2107.00630), which is why it ranks states by rarity.
    Three choices keep the ranking sharp with few network evaluations:

    - **One bank of noise for all states.** Levels and directions are drawn once, so that the error of one state differs
      from another's because of the states and not because of luck. Directions are orthogonal and come in pairs
      :math:`\pm\epsilon`, which cancels the part of the error that is odd in the noise.
    - **A band of noise levels that follows the data**, see :class:`~sb3_exdm.rewards.noise_range.NoiseRange`.
    - **Averaged weights** for scoring, so that the reward does not jitter with the last minibatch.

    Whether the ranking still holds is measured while fitting: :attr:`ranking` is the rank correlation of the score with the
    distance to the nearest neighbors among a few hundred recent states, an estimate of rarity that needs no model but
    does not scale. :meth:`fit` reports it as ``score_ranking`` and warns when it is lost.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: needed for ``kind="action"``
    :param kind: ``"state"`` or ``"action"``
    :param n_levels: noise levels in the bank; by default three in one or two dimensions, four in more
    :param n_noises: noises per level; even, because they come in pairs. A score costs ``n_levels * n_noises`` evaluations
        of the network per state
    :param net_arch: widths of the hidden layers; by default two of 64, of 128 for more than eight dimensions
    :param n_frequencies: octaves of sines and cosines of the state that the network sees; by default three, none in more than
        32 dimensions, where they cost much and help little
    :param learning_rate: of Adam; by default 1e-2, 2e-3 for the wider network
    :param ema_rate: rate of the moving average of the weights
    :param batch_size: minibatch of :meth:`fit`
    :param seed: seed of weights, noise bank and minibatches
    :param device: PyTorch device
    """

    name: ClassVar[str] = "score"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        kind: str = "state",
        n_levels: int | None = None,
        n_noises: int = 4,
        net_arch: Sequence[int] | None = None,
        n_frequencies: int | None = None,
        learning_rate: float | None = None,
        ema_rate: float = 0.99,
        batch_size: int = 256,
        seed: int | None = None,
        device: th.device | str = "auto",
    ) -> None:
        if kind not in ("state", "action"):
            raise ValueError(f"kind must be 'state' (ExDM) or 'action' (EDP), got {kind!r}.")
        if (n_levels is not None and n_levels < 1) or n_noises < 2 or n_noises % 2:
            raise ValueError(f"Need n_levels >= 1 and an even n_noises >= 2, got {n_levels} and {n_noises}.")
        self.needs_actions = kind == "action"
        net_arch = None if net_arch is None else list(net_arch)
        super().__init__(
            observation_space,
            action_space,
            batch_size=batch_size,
            seed=seed,
            device=device,
            kind=kind,
            n_levels=n_levels,
            n_noises=n_noises,
            net_arch=net_arch,
            n_frequencies=n_frequencies,
            learning_rate=learning_rate,
            ema_rate=ema_rate,
        )
        self.kind = kind
        dim = self._encode_actions.dim if self.needs_actions else self.observation_dim
        is_wide = dim + (self.observation_dim if self.needs_actions else 0) > 8
        if n_frequencies is None:
            n_frequencies = 3 if dim <= 32 else 0
        self.band = NoiseRange(dim, n_frequencies=n_frequencies, device=self.device)
        self.model = DiffusionModel(
            dim,
            self.observation_dim if self.needs_actions else 0,
            net_arch=net_arch or ([128, 128] if is_wide else [64, 64]),
            frequencies=self.band.frequencies.tolist(),
            learning_rate=learning_rate or (2e-3 if is_wide else 1e-2),
            ema_rate=ema_rate,
            seed=self.seed,
            device=self.device,
        )
        self.register_buffer(
            "noises", self._noise_bank(n_levels or (3 if dim <= 2 else 4), n_noises, dim)
        )  # (n_levels, n_noises, dim)
        self.register_buffer("_ranking", th.ones((), dtype=th.float64))
        self.register_buffer("_n_lost", th.zeros((), dtype=th.int64))
        self._follow_band()

    noises: th.Tensor
    _ranking: th.Tensor
    _n_lost: th.Tensor

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the network that the score of one state costs."""
        return self.noises.shape[0] * self.noises.shape[1]

    @property
    def ranking(self) -> float:
        """Rank correlation of the score with the distance between neighbors when last measured; 1 before."""
        return self._ranking.item()

    def _noise_bank(self, n_levels: int, n_noises: int, dim: int) -> th.Tensor:
        """Pairs of opposite noises of the typical length sqrt(dim), orthogonal as far as the dimension allows."""
        n_directions = n_levels * n_noises // 2
        blocks = []
        for _ in range(math.ceil(n_directions / dim)):
            random = th.randn(dim, min(dim, n_directions), generator=self.generator, device=self.device)
            basis, _ = th.linalg.qr(random)  # orthonormal columns
            blocks.append(basis.T)
        directions = th.cat(blocks)[:n_directions] * math.sqrt(dim)  # (n_directions, dim)
        return th.stack([directions, -directions], dim=1).reshape(n_levels, n_noises, dim)

    def _follow_band(self) -> None:
        """Take over the band's noise levels and frequencies."""
        self.model.noise_ratios = self.band.range
        for network in (self.model.network, self.model.average):
            network.features.frequencies.copy_(self.band.frequencies)
        n_levels = len(self.noises)
        self._bank: DenoisingError | None = None
        # Midpoints of equal cells of the log-ratio, so that the ends of the band do not weigh double.
        low, high = (math.log(ratio) for ratio in self.band.range)
        cells = (th.arange(n_levels, device=self.device) + 0.5) / n_levels
        self._bank_log_snr = -(low + (high - low) * cells)  # (n_levels,)

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        data, condition = (observations, None) if actions is None else (actions, observations)
        band_moved = self.band.update(data)
        if band_moved:
            if condition is None:
                self._check_ranking()
            self._follow_band()
        self._bank = None  # it belongs to the weights that now change
        metrics = {"score_loss": self.model.fit(data, condition).item()}
        return metrics if condition is not None else {**metrics, "score_ranking": self.ranking}

    @th.no_grad()
    def _check_ranking(self) -> None:
        """Compare the score with the distance between neighbors, and warn when they have disagreed three times in a row."""
        reference = self.band.reference
        rarity = self.band.neighbor_distances(n_neighbors=8)
        if (rarity > 0).sum() < len(rarity) // 2:
            return  # mostly repeated states: distances say nothing
        self._ranking.fill_(_rank_correlation(self._score_batch(reference, None), rarity))
        self._n_lost.fill_(self._n_lost.item() + 1 if self.ranking < LOST_RANKING else 0)
        if self._n_lost.item() == 3:
            warnings.warn(
                f"The score no longer ranks states by rarity (rank correlation {self.ranking:.2f} with the distance between "
                f"neighbors). Fit it more often (train_freq, gradient_steps), or look for a dimension of the observation "
                "that is pure noise or keeps growing, such as a clock.",
                UserWarning,
                stacklevel=4,
            )

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        data, condition = (observations, None) if actions is None else (actions, observations)
        if self._bank is None:
            alpha, sigma = self.model.levels(self._bank_log_snr)
            self._bank = DenoisingError(self.model.average, self.noises, alpha, sigma, self._bank_log_snr)
        return self._bank.errors(data, condition)

    def _extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.model.optimizer.state_dict(), "model_generator": self.model.generator.get_state()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.model.optimizer.load_state_dict(state["optimizer"])
        self.model.generator.set_state(state["model_generator"].cpu())
        self._follow_band()


def _rank_correlation(a: th.Tensor, b: th.Tensor) -> float:
    """Spearman's rank correlation; ties keep their order."""
    ranks = th.stack([a, b]).argsort(dim=1).argsort(dim=1).double()
    return th.corrcoef(ranks)[0, 1].item()
