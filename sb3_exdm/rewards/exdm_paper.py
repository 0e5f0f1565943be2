"""Reward of ExDM with the estimator of the authors' code, the baseline of ``score``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_exdm.common.validation import check_integers
from sb3_exdm.diffusion import NoisePredictor, VPSchedule, denoising_error
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.registry import register_reward


@register_reward("exdm-paper")
class PaperScoreReward(FittedReward):
    r"""
    :math:`R(s) = E_{t,\epsilon}\|\hat\epsilon(s_t, t) - \epsilon\|^2` (ExDM, arXiv 2502.07279, eq. 8) as its authors
    estimate it: ``n_draws`` fresh pairs of time and noise for every state, times uniform in [1e-3, 1], observations without
    whitening, no averaged weights. The reward is the error divided by its running standard deviation, not centered.

    Compared with :class:`~sb3_exdm.rewards.score.ScoreModel`, fresh draws add noise to the difference between two states,
    and uniform times spend most evaluations at noise levels that hide every state alike.

    Scoring is pure: the draws are a hash of the seed, the number of fits and the state. They differ between states and
    after every fit, like fresh ones, and are the same when a state is scored again.

    The default network is as small as that of ``score``, for use on a CPU. The official one is
    ``net_arch=(256, 256, 256), residual=True, dropout=0.1, learning_rate=1e-4``; ``n_draws`` was 20 in mazes and for
    hopper, 50 for walker, 10 for quadruped and 1 for jaco.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: not used
    :param n_draws: pairs of time and noise per state
    :param net_arch: widths of the hidden layers
    :param residual: use residual blocks instead of plain layers
    :param dropout: dropout probability of the residual blocks while fitting
    :param learning_rate: learning rate of Adam
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "exdm-paper"
    reward_transform = "identity"
    n_fits: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        n_draws: int = 20,
        net_arch: Sequence[int] = (64, 64),
        residual: bool = False,
        dropout: float = 0.0,
        learning_rate: float = 5e-3,
        **kwargs: Any,
    ) -> None:
        check_integers(n_draws=(n_draws, 1))
        super().__init__(observation_space, action_space, **kwargs)
        self.n_draws = n_draws
        self.schedule = VPSchedule()
        with th.random.fork_rng(devices=[]):  # initialization leaves the global generator as it was
            th.manual_seed(self.seed)
            network = NoisePredictor(self.observation_dim, net_arch=net_arch, residual=residual, dropout=dropout)
        self.network = network.to(self.device)
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate)
        self._dropout = dropout
        self.register_buffer("n_fits", th.zeros((), dtype=th.int64))
        # One odd multiplier per dimension for the hash of a state.
        factors = np.random.default_rng(self.seed).integers(0, 2**62, self.observation_dim) * 2 + 1
        self._factors = th.as_tensor(factors, device=self.device)

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        return states

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        t = th.rand(len(observations), generator=self.generator, device=self.device)
        noise = th.randn(observations.shape, generator=self.generator, device=self.device)
        self.network.train()
        if self._dropout:
            # Dropout draws from the global generator.
            with th.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                th.manual_seed(int(th.randint(2**31, (), generator=self.generator, device=self.device)))
                loss = self._errors(observations, t, noise).mean()
        else:
            loss = self._errors(observations, t, noise).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.network.eval()
        self.n_fits += 1
        return {"score_loss": loss.item()}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        uniform = self._uniform(observations, 1 + 2 * self.observation_dim)  # (batch, n_draws, 1 + 2 * dim)
        t = uniform[..., 0].flatten()
        radius, angle = uniform[..., 1:].chunk(2, dim=-1)
        noise = (-2.0 * radius.log()).sqrt() * (2.0 * th.pi * angle).cos()  # Box & Muller (1958)
        states = observations.repeat_interleave(self.n_draws, dim=0)  # (batch * n_draws, dim)
        return self._errors(states, t, noise.flatten(0, 1)).view(-1, self.n_draws).mean(dim=1)

    def _errors(self, states: th.Tensor, uniform: th.Tensor, noise: th.Tensor) -> th.Tensor:
        t = self.schedule.t_min + (self.schedule.t_max - self.schedule.t_min) * uniform
        alpha, sigma = self.schedule.alpha_sigma(t)
        x_t = alpha.unsqueeze(1) * states + sigma.unsqueeze(1) * noise  # (batch, dim)
        return denoising_error(self.network(x_t, alpha, sigma, self.schedule.log_snr(t), None), noise)

    def _uniform(self, states: th.Tensor, width: int) -> th.Tensor:
        """Uniform numbers in (0, 1), ``(batch, n_draws, width)``, a function of seed, number of fits and state."""
        bits = states.contiguous().view(th.int32).long()  # (batch, dim)
        keys = (bits * self._factors).sum(dim=1) + self.seed + self.n_fits * _GOLDEN  # (batch,)
        counter = th.arange(self.n_draws * width, device=self.device) * _GOLDEN
        mixed = _mix(_mix(keys).unsqueeze(1) + counter)  # (batch, n_draws * width)
        return ((_shift(mixed, 40) + 0.5) / 2**24).view(len(states), self.n_draws, width)

    def reward_tensor(self, observations: Any, actions: Any = None) -> th.Tensor:
        """Compute ``score / std`` with the running standard deviation of the score, not centered; changes nothing."""
        return self.score_tensor(observations, actions) / self.score_moments.std

    def _extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])


# splitmix64 (Steele, Lea & Flood 2014) in the signed 64-bit arithmetic of PyTorch, which wraps around.
_GOLDEN, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(values: th.Tensor, n_bits: int) -> th.Tensor:
    """Logical shift to the right."""
    return (values >> n_bits) & (2 ** (64 - n_bits) - 1)


def _mix(values: th.Tensor) -> th.Tensor:
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)
