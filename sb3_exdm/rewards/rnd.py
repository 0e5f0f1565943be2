"""Random network distillation."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_exdm.common.running_moments import RunningMoments
from sb3_exdm.common.serialization import load_optimizer
from sb3_exdm.common.validation import Between, LearningRate, NFrequencies, Positive, Widths
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.features import StateFeatures
from sb3_exdm.rewards.registry import register_reward


@register_reward("rnd")
class RNDReward(FittedReward):
    r"""
    Random network distillation (RND, Burda et al. 2018, arXiv 1810.12894, sec. 2.2): a predictor learns the output of a
    fixed, randomly initialized target network on the visited states; its error
    :math:`\|\hat f_\theta(s) - f(s)\|^2` is small only where it has been trained.

    As in the paper (sec. 2.4), observations are whitened and clipped, because a target that is not trained cannot adapt
    to their scale, and weights are orthogonal. The predictor has one layer more than the target. Sines and cosines of the
    state, the same input that the other rewards have, make target and error vary between neighboring states.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: not used
    :param net_arch: widths of the hidden layers of the target
    :param embedding_dim: width of the output of target and predictor
    :param clip_obs: bound that whitened observations are clipped to
    :param n_frequencies: octaves of sines and cosines of the state in the input of both networks, 0 for none; by default
        five in low dimension, see :func:`~sb3_exdm.rewards.features.default_frequencies`
    :param learning_rate: learning rate of Adam; by default 3e-3, 1e-3 without sines and cosines
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "rnd"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        net_arch: Annotated[Sequence[int], Widths()] = (128,),
        embedding_dim: Annotated[int, Between(1, 65_536)] = 64,
        clip_obs: Positive = 5.0,
        n_frequencies: NFrequencies | None = None,
        learning_rate: LearningRate | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, **kwargs)
        # The error falls by orders of magnitude: a short memory follows its scale.
        self.score_moments = RunningMoments(1, min_weight=0.1, std_floor=1e-8, device=self.device)
        self.clip_obs = clip_obs
        self.features = StateFeatures(self.observation_dim, n_frequencies, self.device)
        self.target = self._network([*net_arch, embedding_dim]).requires_grad_(False)
        self.predictor = self._network([*net_arch, embedding_dim, embedding_dim])
        default_rate = 3e-3 if len(self.features.frequencies) else 1e-3
        self.optimizer = th.optim.Adam(self.predictor.parameters(), lr=learning_rate or default_rate)

    def _network(self, widths: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width_in, width in zip([self.features.width, *widths[:-1]], widths, strict=True):
            linear = nn.utils.skip_init(
                nn.Linear, width_in, width, device=self.device
            )  # does not draw from the global generator
            nn.init.orthogonal_(linear.weight, gain=2.0**0.5, generator=self.generator)
            nn.init.zeros_(linear.bias)
            layers.extend([linear, nn.ReLU()])
        return nn.Sequential(*layers[:-1])

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        return self.whitening.standardize(states).clamp_(-self.clip_obs, self.clip_obs)

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        loss = self._errors(observations).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"rnd_loss": loss.item()}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return self._errors(observations)

    def _errors(self, observations: th.Tensor) -> th.Tensor:
        inputs = self.features(observations)  # (batch, width)
        return (self.predictor(inputs) - self.target(inputs)).square().mean(dim=1)  # (batch,)

    def _extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
