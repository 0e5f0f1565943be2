"""What models that train themselves have in common."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn


class Trainable(nn.Module):
    """
    A network with its optimizer, its own generator, and a moving average of its weights. A subclass sets all of these.
    """

    optimizer: th.optim.Optimizer
    generator: th.Generator
    ema_rate: float
    _weights: list[th.Tensor]
    _average_weights: list[th.Tensor]

    def descend(self, loss: th.Tensor) -> None:
        """
        One step of the optimizer, after which the average of the weights follows.

        :param loss: a scalar that depends on the weights
        """
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with th.no_grad():
            th._foreach_lerp_(self._average_weights, self._weights, 1.0 - self.ema_rate)

    def training_state(self) -> dict[str, Any]:
        """What :meth:`state_dict` leaves out: the states of optimizer and generator."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`training_state`"""
        self.optimizer.load_state_dict(state["optimizer"])
        saved = state["generator"].cpu()
        if len(saved) == len(self.generator.get_state()):  # not if it was saved on another kind of device
            self.generator.set_state(saved)

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> Any:
        """Move to another device, the generator too: it begins anew there."""
        super()._apply(fn, recurse)
        device = self._weights[0].device
        if device != self.generator.device:
            seed = self.generator.initial_seed()
            self.generator = th.Generator(device=device)
            self.generator.manual_seed(seed)
        return self
