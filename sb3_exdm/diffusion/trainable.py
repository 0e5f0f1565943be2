"""Base class of models with their own optimizer, random generator and averaged weights."""

import secrets
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch as th
from torch import nn

from sb3_exdm.common.dense import FlatAdam, FlatParameters
from sb3_exdm.common.serialization import load_optimizer


class Trainable(nn.Module):
    """
    Network with an optimizer, a random generator and an exponential moving average of its weights.

    :param make_network: builds the network
    :param learning_rate: learning rate of Adam
    :param ema_rate: rate of the moving average, in [0, 1); 0 for none
    :param seed: seed of initialization and of all random draws; random by default
    :param device: PyTorch device
    """

    network: nn.Module
    average: nn.Module

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        learning_rate: float,
        ema_rate: float,
        seed: int | None,
        device: th.device | str,
    ) -> None:
        super().__init__()
        self.ema_rate = ema_rate
        self.generator = th.Generator(device=device)
        self.generator.manual_seed(secrets.randbits(32) if seed is None else seed)
        with th.random.fork_rng(devices=[]):  # initialization must not disturb the global generator
            th.manual_seed(self.generator.initial_seed())
            self.network = make_network().to(device)
        self.average = deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
        self._weights: list[th.Tensor] = list(self.network.parameters())
        self._flat: tuple[FlatAdam, FlatParameters] | None = None

    def flat_weights(self) -> tuple[FlatAdam, FlatParameters]:
        """Return the weights with their optimizer, and the averaged weights, as vectors."""
        if self._flat is None or not all(part.is_current for part in self._flat):
            self._flat = FlatAdam(self.optimizer), FlatParameters(self.average.parameters())
        return self._flat

    def recompute(self) -> None:
        """Make vectors of the weights again, after an optimizer that has made steps was restored."""
        if self.optimizer.state:
            self.flat_weights()

    def descend(self, loss: th.Tensor) -> None:
        """
        Take one step of the optimizer and update the averaged weights. Other networks in the loss get no gradient.

        :param loss: scalar that depends on the weights
        """
        optimizer, _ = self.flat_weights()
        optimizer.zero_grad()
        loss.backward(inputs=self._weights)
        self.step()

    @th.no_grad()
    def step(self) -> None:
        """Take one step of the optimizer along its gradient and update the averaged weights."""
        optimizer, average = self.flat_weights()
        optimizer.step()
        average.values.lerp_(optimizer.values, 1.0 - self.ema_rate)

    def training_state(self) -> dict[str, Any]:
        """Return the states of optimizer and generator, which :meth:`state_dict` leaves out."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        load_optimizer(self.optimizer, state["optimizer"])
        saved = state["generator"].cpu()
        if len(saved) == len(self.generator.get_state()):  # not if it was saved on another kind of device
            self.generator.set_state(saved)

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> Any:
        """Move to another device. The generator starts anew there."""
        super()._apply(fn, recurse)
        device = self._weights[0].device
        if device != self.generator.device:
            seed = self.generator.initial_seed()
            self.generator = th.Generator(device=device)
            self.generator.manual_seed(seed)
        return self
