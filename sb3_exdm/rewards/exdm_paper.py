"""Reward of ExDM as in the authors' code, the baseline of ``score``."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_exdm.common.running_moments import RunningMoments
from sb3_exdm.common.serialization import load_optimizer
from sb3_exdm.common.validation import Between, LearningRate, NetArch
from sb3_exdm.diffusion import VPSchedule, denoising_error
from sb3_exdm.diffusion.networks import FourierFeatures, ResidualBlock
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.registry import register_reward

SCORED_AT_ONCE = 256
"""Number of states that are scored at once; the draws of more do not fit into the cache of a CPU."""


class TimeEmbedding(nn.Module):
    """
    Learned embedding of diffusion times, on random Fourier features of them (Tancik et al. 2020, arXiv 2006.10739).

    :param n_features: number of sines and cosines together
    :param scale: standard deviation of their random frequencies
    :param width: width of the output
    """

    frequencies: th.Tensor

    def __init__(self, n_features: int = 64, scale: float = 30.0, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 * math.pi * scale * th.randn(n_features // 2))
        self.layers = nn.Sequential(nn.Linear(n_features, width), nn.Mish(), nn.Linear(width, width))
        self.width = width

    def forward(self, t: th.Tensor) -> th.Tensor:
        """Compute the embeddings ``(batch, width)`` of times ``(batch,)``."""
        phases = t.unsqueeze(1) * self.frequencies  # (batch, n_features / 2)
        return self.layers(th.cat([phases.sin(), phases.cos()], dim=1))


class ScoreNetwork(nn.Module):
    r"""
    Network :math:`s_\theta(x_t, t)` that predicts the score, so that :math:`\hat\epsilon = -\sigma_t s_\theta`.

    :param dim: width of the data
    :param net_arch: widths of the hidden layers; with ``residual``, the number of blocks, all of the first width
    :param residual: residual blocks with LayerNorm instead of plain layers
    :param frequencies: angular frequencies of the sines and cosines of ``x_t``; the authors have none
    """

    def __init__(
        self, dim: int, net_arch: Sequence[int] = (256, 256, 256), residual: bool = True, frequencies: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.features = FourierFeatures(frequencies)
        self.time = TimeEmbedding()
        widths = [self.features.output_dim(dim) + self.time.width, *net_arch]
        if residual:
            blocks = [ResidualBlock(widths[1], dropout=0.0) for _ in net_arch]
            self.layers = nn.Sequential(nn.Linear(widths[0], widths[1]), *blocks, nn.Mish(), nn.Linear(widths[1], dim))
        else:
            layers: list[nn.Module] = []
            for i in range(len(net_arch)):
                layers += [nn.Linear(widths[i], widths[i + 1]), nn.SiLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, x_t: th.Tensor, t: th.Tensor, sigma: th.Tensor, masks: th.Tensor | None = None) -> th.Tensor:
        """
        :param x_t: noisy samples, ``(batch, dim)``
        :param t: times, ``(batch,)``
        :param sigma: factor of the noise, ``(batch,)``
        :param masks: factors of the dropout in every residual block, ``(batch, n_blocks, width)``
        :return: predicted noise, ``(batch, dim)``
        """
        inputs = th.cat([self.features(x_t), self.time(t)], dim=1)
        return -sigma.unsqueeze(1) * apply_layers(self.layers, inputs, masks)


def apply_layers(layers: nn.Sequential, inputs: th.Tensor, masks: th.Tensor | None = None) -> th.Tensor:
    """
    Apply layers, with a dropout that the caller has drawn.

    :param layers: layers, with residual blocks among them
    :param inputs: ``(batch, dim)``
    :param masks: factors of the dropout in every residual block, ``(batch, n_blocks, width)``
    """
    i = 0
    for layer in layers:
        if masks is not None and isinstance(layer, ResidualBlock):
            inputs = layer(inputs, masks[:, i])
            i += 1
        else:
            inputs = layer(inputs)
    return inputs


class StateHash:
    """
    Random numbers that are a function of a state, by splitmix64 (Steele, Lea & Flood 2014). They differ between states, like
    fresh ones, and are the same when a state is scored again.

    :param dim: width of the states
    :param seed: seed
    :param device: PyTorch device
    """

    def __init__(self, dim: int, seed: int, device: th.device) -> None:
        # One odd multiplier per dimension for the hash of a state.
        factors = np.random.default_rng(seed).integers(0, 2**62, dim) * 2 + 1
        self._factors = th.as_tensor(factors, device=device)
        self._seed = seed

    def words(self, states: th.Tensor, n_words: int, stream: th.Tensor) -> th.Tensor:
        """
        Random 64-bit integers.

        :param states: float32, ``(batch, dim)``
        :param n_words: number of integers for every state
        :param stream: index of an independent stream, a scalar integer
        :return: ``(batch, n_words)``
        """
        bits = states.contiguous().view(th.int32).long()  # (batch, dim)
        keys = (bits * self._factors).sum(dim=1) + self._seed + stream * _GOLDEN  # (batch,)
        counter = th.arange(n_words, device=states.device) * _GOLDEN
        return _mix(_mix(keys).unsqueeze(1) + counter)

    def uniform(self, states: th.Tensor, n_numbers: int, stream: th.Tensor) -> th.Tensor:
        """Random numbers in (0, 1), ``(batch, n_numbers)``; the parameters are those of :meth:`words`."""
        return (_shift(self.words(states, n_numbers, stream), 40) + 0.5) / 2**24

    def masks(self, states: th.Tensor, n_units: int, dropout: float, stream: th.Tensor) -> th.Tensor:
        """
        Random factors of a dropout, from 16 bits for every unit.

        :param states: float32, ``(batch, dim)``
        :param n_units: number of units for every state
        :param dropout: probability of the factor 0
        :param stream: index of an independent stream, a scalar integer
        :return: 0 or ``1 / (1 - dropout)``, ``(batch, n_units)``
        """
        fields = self.words(states, math.ceil(n_units / 4), stream).view(th.int16)[:, :n_units]
        return (fields >= round(dropout * 2**16) - 2**15) / (1.0 - dropout)


@register_reward("exdm-paper")
class PaperScoreReward(FittedReward):
    r"""
    :math:`R(s) = E_{t,\epsilon}\|\hat\epsilon(s_t, t) - \epsilon\|^2` (ExDM, arXiv 2502.07279, eq. 8) as its authors compute
    it (github.com/yingchengyang/ExDM, MIT, commit 6a89ed6, ``URL/agent/exdm.py``):

    - a residual network that predicts the score, with Adam at 1e-4 and without averaged weights;
    - ``n_draws`` fresh pairs of time and noise for every state, times uniform in [1e-3, 1];
    - observations without whitening, and of a transition the state that was left;
    - dropout, also while scoring;
    - the error divided by its standard deviation over all fits so far, not centered.

    Compared with :class:`~sb3_exdm.rewards.score.ScoreModel`, fresh draws add noise to the difference between two states,
    and uniform times spend most evaluations at noise levels that hide every state alike.

    Scoring is pure nevertheless: draws and dropout are a hash of the seed, the number of fits and the state. They differ
    between states and after every fit, like fresh ones, and are the same when a state is scored again.

    ``n_draws`` was 20 in mazes and for hopper, 50 for walker, 10 for quadruped and 1 for jaco. The network is meant for a
    GPU. With ``net_arch=(64, 64), residual=False, dropout=0.0, learning_rate=5e-3`` it is about as small as that of ``score``.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: not used
    :param n_draws: pairs of time and noise per state
    :param net_arch: widths of the hidden layers; with ``residual``, the number of blocks, all of the first width
    :param residual: use residual blocks instead of plain layers
    :param dropout: dropout probability of the residual blocks
    :param learning_rate: learning rate of Adam
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "exdm-paper"
    reward_transform = "identity"
    scores_next = False
    n_fits: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        n_draws: Annotated[int, Between(1, 100_000)] = 20,
        net_arch: NetArch = (256, 256, 256),
        residual: bool = True,
        dropout: Annotated[float, Between(0.0, 1.0, open_high=True)] = 0.1,
        learning_rate: LearningRate = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        self.score_moments = RunningMoments(1, min_weight=0.0, std_floor=1e-8, device=self.device)  # never forgets
        self.n_draws = n_draws
        self.schedule = VPSchedule()
        with th.random.fork_rng(devices=[]):  # initialization leaves the global generator as it was
            th.manual_seed(self.seed)
            network = ScoreNetwork(self.observation_dim, net_arch, residual)
        self.network = network.to(self.device)
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate, fused=True)
        self.dropout = dropout if residual else 0.0
        self._mask_shape = (len(net_arch), net_arch[0])
        self.register_buffer("n_fits", th.zeros((), dtype=th.int64))
        self._hash = StateHash(self.observation_dim, self.seed, self.device)

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        return states.float()

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        t = th.rand(len(observations), generator=self.generator, device=self.device)
        noise = th.randn(observations.shape, generator=self.generator, device=self.device)
        masks = None
        if self.dropout:
            uniform = th.rand((len(observations), *self._mask_shape), generator=self.generator, device=self.device)
            masks = (uniform >= self.dropout) / (1.0 - self.dropout)
        loss = self._errors(observations, t, noise, masks).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.n_fits += 1
        return {"score_loss": loss.item()}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return th.cat([self._score_some(states) for states in observations.split(SCORED_AT_ONCE)])

    def _score_some(self, states: th.Tensor) -> th.Tensor:
        uniform = self._uniform(states, 1 + 2 * self.observation_dim)  # (batch, n_draws, 1 + 2 * dim)
        t = uniform[..., 0].flatten()
        radius, angle = uniform[..., 1:].chunk(2, dim=-1)
        noise = (-2.0 * radius.log()).sqrt() * (2.0 * th.pi * angle).cos()  # Box & Muller (1958)
        masks = None
        if self.dropout:
            n_units = self.n_draws * math.prod(self._mask_shape)
            masks = self._hash.masks(states, n_units, self.dropout, 2 * self.n_fits + 1).view(-1, *self._mask_shape)
        states = states.repeat_interleave(self.n_draws, dim=0)  # (batch * n_draws, dim)
        return self._errors(states, t, noise.flatten(0, 1), masks).view(-1, self.n_draws).mean(dim=1)

    def _errors(self, states: th.Tensor, uniform: th.Tensor, noise: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        t = self.schedule.t_min + (self.schedule.t_max - self.schedule.t_min) * uniform
        alpha, sigma = self.schedule.alpha_sigma(t)
        x_t = alpha.unsqueeze(1) * states + sigma.unsqueeze(1) * noise  # (batch, dim)
        return denoising_error(self.network(x_t, t, sigma, masks), noise)

    def _uniform(self, states: th.Tensor, width: int) -> th.Tensor:
        """Uniform numbers in (0, 1), ``(batch, n_draws, width)``, a function of seed, number of fits and state."""
        return self._hash.uniform(states, self.n_draws * width, 2 * self.n_fits).view(len(states), self.n_draws, width)

    def reward_tensor(self, observations: Any, actions: Any = None) -> th.Tensor:
        """Compute ``score / std`` with the cumulative standard deviation of the score, not centered; changes nothing."""
        return self.score_tensor(observations, actions) / self.score_moments.std

    def _extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])


# In the signed 64-bit arithmetic of PyTorch, which wraps around.
_GOLDEN, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(values: th.Tensor, n_bits: int) -> th.Tensor:
    """Logical shift to the right."""
    return (values >> n_bits) & (2 ** (64 - n_bits) - 1)


def _mix(values: th.Tensor) -> th.Tensor:
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)
