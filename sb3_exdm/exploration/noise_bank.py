"""The denoising error of a fixed bank of noises, computed with few and large operations."""

import torch as th
from torch import nn

from sb3_exdm.diffusion import NoisePredictor


class NoiseBank:
    r"""
    Mean of :math:`\|\hat\epsilon(\alpha_i x + \sigma_i \epsilon_{ij}) - \epsilon_{ij}\|^2` over the levels i and noises j of a
    bank, for a network that does not change.

    As the bank is the same for every state, all that precedes the first nonlinearity is a linear map of the state and of its
    sines and cosines at each level: by the addition theorems the noise only turns these, and the turn is multiplied into the
    weights once, for all noises together. Single states, as wrappers score them, are then several times as fast, since the
    time goes into the number of operations; batches about twice as fast. With the network's parametrisation
    :math:`\hat\epsilon = \sigma x_t + \alpha v` the error is :math:`\alpha^2 \|v - (\alpha\epsilon - \sigma x)\|^2`, the error
    of the velocity (Salimans & Ho 2022, arXiv 2202.00512).

    The object holds views of the network's weights: build a new one when they have changed.

    :param network: a network of plain layers
    :param noises: ``(n_levels, n_noises, dim)``
    :param alpha: factor of the data, ``(n_levels,)``
    :param sigma: factor of the noise, ``(n_levels,)``
    :param log_snr: ``log(alpha / sigma)``, ``(n_levels,)``
    """

    @th.no_grad()
    def __init__(
        self, network: NoisePredictor, noises: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, log_snr: th.Tensor
    ) -> None:
        self.n_levels, self.n_noises, self.dim = noises.shape
        layers = [layer for layer in network.velocity if isinstance(layer, nn.Linear)]
        frequencies = network.features.frequencies
        levels = network.noise_level(log_snr)  # (n_levels, level_dim)
        n_waves = self.dim * len(frequencies)
        # The network reads [x_t, sines, cosines, level, condition]: see NoisePredictor.forward.
        first = layers[0].weight.T  # (width, hidden)
        rest = first.shape[0] - self.dim - 2 * n_waves - levels.shape[1]
        of_x, of_sin, of_cos, of_level, self._of_condition = first.split([self.dim, n_waves, n_waves, levels.shape[1], rest])
        shift = sigma.view(-1, 1, 1) * noises  # (n_levels, n_noises, dim)
        turn = (shift.unsqueeze(3) * frequencies).flatten(2).unsqueeze(3)  # (n_levels, n_noises, n_waves, 1)
        sin, cos = turn.sin(), turn.cos()
        weights = th.cat(
            [
                (alpha.view(-1, 1, 1) * of_x).unsqueeze(1).expand(-1, self.n_noises, -1, -1),
                cos * of_sin - sin * of_cos,
                sin * of_sin + cos * of_cos,
            ],
            dim=2,
        )  # (n_levels, n_noises, dim + 2 * n_waves, hidden)
        self._hidden = weights.transpose(1, 2).flatten(2)  # (n_levels, dim + 2 * n_waves, n_noises * hidden)
        bias = shift @ of_x + (levels @ of_level + layers[0].bias).unsqueeze(1)  # (n_levels, n_noises, hidden)
        self._hidden_0 = bias.view(self.n_levels, 1, -1)
        self._frequencies = alpha.view(-1, 1, 1, 1) * frequencies  # (n_levels, 1, 1, n_frequencies)
        self._layers = [(layer.weight.T, layer.bias) for layer in layers[1:]]
        self._sigma = sigma.view(-1, 1, 1, 1)
        self._target = (alpha.view(-1, 1, 1) * noises).unsqueeze(1)  # (n_levels, 1, n_noises, dim)
        self._weights = alpha.square() / (self.n_levels * self.n_noises)

    @th.no_grad()
    def errors(self, x: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: data, ``(batch, dim)``
        :param condition: ``(batch, condition_dim)``
        :return: mean denoising error, ``(batch,)``
        """
        n = len(x)
        phases = (x.unsqueeze(2) * self._frequencies).flatten(2)  # (n_levels, batch, n_waves)
        inputs = th.cat([x.expand(self.n_levels, -1, -1), phases.sin(), phases.cos()], dim=2)
        hidden = th.baddbmm(self._hidden_0, inputs, self._hidden).view(self.n_levels, n, self.n_noises, -1)
        if condition is not None:
            hidden.add_((condition @ self._of_condition).unsqueeze(1))
        hidden = hidden.flatten(0, 2)  # (n_levels * batch * n_noises, hidden)
        for weight, bias in self._layers:
            hidden = th.addmm(bias, nn.functional.silu(hidden, inplace=True), weight)
        velocity = hidden.view(self.n_levels, n, self.n_noises, self.dim)
        difference = velocity - self._target + self._sigma * x.unsqueeze(1)
        return self._weights @ difference.square_().sum(dim=(2, 3))
