"""Networks beside the diffusion model: critics and Gaussian."""

import itertools
import math
from collections.abc import Sequence

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # as in Stable-Baselines3's SAC


class Critic(nn.Module):
    """
    State-action values with LayerNorm, all critics in one batched operation. LayerNorm reduces the overestimation of actions
    outside the data (RLPD, arXiv 2302.02948).

    :param features_dim: width of the features of an observation
    :param action_dim: width of an action
    :param net_arch: widths of the hidden layers
    :param n_critics: number of critics
    """

    def __init__(self, features_dim: int, action_dim: int, net_arch: Sequence[int] = (256, 256), n_critics: int = 2) -> None:
        super().__init__()
        self.n_critics = n_critics
        self.optimizer: th.optim.Optimizer | None = None  # Stable-Baselines3 expects it here
        widths = [features_dim + action_dim, *net_arch, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for width_in, width_out in itertools.pairwise(widths):
            bound = 1.0 / math.sqrt(width_in)  # as in nn.Linear
            self.weights.append(nn.Parameter(th.empty(n_critics, width_in, width_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(th.empty(n_critics, 1, width_out).uniform_(-bound, bound)))

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Compute the values of all critics.

        :param features: features of the observations, ``(batch, features_dim)``
        :param actions: actions in [-1, 1], ``(batch, action_dim)``
        :return: values, ``(n_critics, batch)``
        """
        hidden = th.cat([features, actions], dim=1).expand(self.n_critics, -1, -1)  # (n_critics, batch, width)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = nn.functional.layer_norm(th.baddbmm(bias, hidden, weight), (weight.shape[2],))
            hidden = nn.functional.relu(hidden, inplace=True)
        return th.baddbmm(self.biases[-1], hidden, self.weights[-1]).squeeze(2)

    def min_q(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Compute the minimum over the critics, for several actions per state.

        :param features: features of the observations, ``(batch, features_dim)``
        :param actions: actions in [-1, 1], ``(batch, n_actions, action_dim)``
        :return: values, ``(batch, n_actions)``
        """
        batch, n_actions, dim = actions.shape
        repeated = features.unsqueeze(1).expand(-1, n_actions, -1).reshape(batch * n_actions, -1)
        return self(repeated, actions.reshape(batch * n_actions, dim)).amin(dim=0).reshape(batch, n_actions)


class SquashedGaussian(nn.Module):
    """
    Actor of Stable-Baselines3's SAC on given features. Its layers have the same names, so weights can be exchanged.

    :param features_dim: width of the features of an observation
    :param action_dim: width of an action
    :param net_arch: widths of the hidden layers
    """

    def __init__(self, features_dim: int, action_dim: int, net_arch: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.net_arch = list(net_arch)
        self.latent_pi = nn.Sequential(*create_mlp(features_dim, -1, self.net_arch))
        self.mu = nn.Linear(net_arch[-1], action_dim)
        self.log_std = nn.Linear(net_arch[-1], action_dim)

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Compute mean and log standard deviation before squashing, each ``(batch, action_dim)``."""
        latent = self.latent_pi(features)
        return self.mu(latent), self.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)

    def action_log_prob(self, features: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Draw differentiable samples with their log-density.

        :param features: features of the observations, ``(batch, features_dim)``
        :param noise: standard normal noise, ``(batch, action_dim)``
        :return: actions in [-1, 1] ``(batch, action_dim)``, log-densities ``(batch,)``
        """
        mean, log_std = self(features)
        raw = mean + log_std.exp() * noise
        # log(1 - tanh(x)^2) in the form that does not cancel: 2 (log 2 - x - softplus(-2 x)).
        squash = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi) - squash
        return raw.tanh(), log_prob.sum(dim=1)

    def log_prob(self, features: th.Tensor, raw_actions: th.Tensor) -> th.Tensor:
        """
        Compute the log-density of actions before squashing, ``(batch,)``.

        :param features: features of the observations, ``(batch, features_dim)``
        :param raw_actions: actions before squashing, ``(batch, action_dim)``
        """
        mean, log_std = self(features)
        noise = (raw_actions - mean) * (-log_std).exp()
        return (-0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=1)

    def mode(self, features: th.Tensor) -> th.Tensor:
        """Compute the squashed means, ``(batch, action_dim)``."""
        return self(features)[0].tanh()
