"""Written-out gradient of the denoising error of a network of plain layers."""

import torch as th
from torch import nn

from sb3_exdm.common.dense import SILU, DenseLayers, FlatAdam
from sb3_exdm.common.state import Derived
from sb3_exdm.diffusion.networks import NoisePredictor
from sb3_exdm.diffusion.schedule import NoisySamples


class FusedFit(Derived):
    r"""
    Mean denoising error of a minibatch and its gradient, without autograd.

    With the network's parametrization :math:`\hat\epsilon = \sigma x_t + \alpha v` the loss is
    :math:`L = \tfrac1B \sum \|r\|^2` with :math:`r = \alpha v + \sigma x_t - \epsilon`, and
    :math:`\partial L / \partial v = \tfrac2B \alpha r`; :class:`~sb3_exdm.common.dense.DenseLayers` does the rest.

    :param network: network for which :meth:`supports` holds
    :param optimizer: where the gradient is written
    """

    def __init__(self, network: NoisePredictor, optimizer: FlatAdam) -> None:
        self.network = network
        self.optimizer = optimizer
        layers = [layer for layer in network.velocity if isinstance(layer, nn.Linear)]
        self.velocity = DenseLayers(layers, optimizer, activation=SILU)

    @staticmethod
    def supports(network: NoisePredictor) -> bool:
        """Tell plain layers from residual blocks."""
        return all(isinstance(layer, (nn.Linear, nn.SiLU)) for layer in network.velocity)

    @th.no_grad()
    def __call__(self, samples: NoisySamples, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the loss and write its gradient to the optimizer.

        :param samples: noisy samples of a minibatch
        :param condition: conditions, ``(batch, condition_dim)``
        :return: mean over the batch of the squared error, summed over dimensions
        """
        x_t, noise, log_snr, alpha, sigma = samples
        done = self.velocity.forward(self.network.inputs(x_t, log_snr.squeeze(1), condition))
        error = (sigma * x_t).sub_(noise).addcmul_(alpha, done.result)  # (batch, dim)
        loss = error.square().sum().div_(len(x_t))
        self.velocity.backward(done, error.mul_(alpha).mul_(2.0 / len(x_t)))
        return loss
