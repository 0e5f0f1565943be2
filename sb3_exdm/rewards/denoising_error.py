"""Denoising error for fixed noises, computed with few and large operations."""

import math

import torch as th
from torch import nn

from sb3_exdm.common.state import Derived
from sb3_exdm.diffusion import NoisePredictor


class DenoisingError(Derived):
    r"""
    Mean of :math:`\|\hat\epsilon(\alpha_j x + \sigma_j \epsilon_j) - \epsilon_j\|^2` over fixed noises j.

    The noises are the same for all states. All operations before the first nonlinearity are therefore one affine map of the
    state, computed once for all noises together: four times as fast for single states, as wrappers score them, up to twice
    as fast for batches. With the network's parametrization :math:`\hat\epsilon = \sigma x_t + \alpha v` the error is
    :math:`\alpha^2 \|v - (\alpha\epsilon - \sigma x)\|^2`, that of the velocity (Salimans & Ho 2022, arXiv 2202.00512).

    :param noises: ``(n_levels, n_noises, dim)``
    :param alpha: factor of the data, ``(n_levels,)``
    :param sigma: factor of the noise, ``(n_levels,)``
    :param levels: encoded noise levels, ``(n_levels, level_dim)``
    :param frequencies: angular frequencies of the sines and cosines, ``(n_frequencies,)``
    """

    def __init__(
        self, noises: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, levels: th.Tensor, frequencies: th.Tensor
    ) -> None:
        n_per_level = noises.shape[1]
        alpha, sigma, self._levels = (level.repeat_interleave(n_per_level, dim=0) for level in (alpha, sigma, levels))
        noises = noises.flatten(0, 1)  # (n_levels * n_noises, dim), from here on one level per noise
        self.n_noises, self.dim = noises.shape
        self.n_waves = self.dim * len(frequencies)
        self._alpha, self._sigma = alpha.unsqueeze(1), sigma.unsqueeze(1)
        self._shift = self._sigma * noises  # (n_noises, dim)
        # The phases of all sines and cosines of x_t = alpha x + shift, cos(z) = sin(z + pi / 2), are an affine map of x.
        waves = th.kron(th.eye(self.dim, device=noises.device), frequencies)  # (dim, n_waves)
        self._to_phases = th.cat([waves, waves], dim=1)
        quarter = th.full((self.n_waves,), 0.5 * math.pi, device=noises.device)
        self._phase_0 = self._shift @ self._to_phases + th.cat([th.zeros_like(quarter), quarter])  # (n_noises, 2 * n_waves)
        self._target_0 = self._alpha * noises  # (n_noises, dim)
        self._weights = (alpha.square() / self.n_noises).repeat_interleave(self.dim)

    @th.inference_mode()
    def set_network(self, network: NoisePredictor) -> None:
        """
        Take the weights of a network. Call it again when they have changed.

        :param network: network of plain layers
        """
        layers = [layer for layer in network.velocity if isinstance(layer, nn.Linear)]
        # The network reads [x_t, sines, cosines, level, condition]: see NoisePredictor.inputs.
        first = layers[0].weight.T  # (width, hidden)
        known = self.dim + 2 * self.n_waves + self._levels.shape[1]
        parts = [self.dim, 2 * self.n_waves, self._levels.shape[1], len(first) - known]
        of_x, self._of_waves, of_levels, self._of_condition = first.split(parts)
        # The part of the first layer that is linear in x, once per noise.
        self._hidden = (of_x.unsqueeze(1) * self._alpha).flatten(1)  # (dim, n_noises * hidden)
        self._hidden_0 = (self._shift @ of_x + th.addmm(layers[0].bias, self._levels, of_levels)).flatten()
        self._layers = [(layer.weight.T, layer.bias) for layer in layers[1:-1]]
        # The last layer outputs v - (alpha noise - sigma x) instead of v.
        self._last = layers[-1].weight.T
        self._rest_0 = layers[-1].bias - self._target_0  # (n_noises, dim)

    @th.inference_mode()
    def errors(self, x: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the mean denoising error.

        :param x: data, ``(batch, dim)``
        :param condition: ``(batch, condition_dim)``
        :return: ``(batch,)``
        """
        n = len(x)
        hidden = th.addmm(self._hidden_0, x, self._hidden)  # (batch, n_noises * hidden)
        if condition is not None:
            hidden.view(n, self.n_noises, -1).add_((condition @ self._of_condition).unsqueeze(1))
        hidden = hidden.view(n * self.n_noises, -1)
        if self.n_waves:
            phases = (x @ self._to_phases).unsqueeze(1)  # (batch, 1, 2 * n_waves)
            waves = th.addcmul(self._phase_0, self._alpha, phases).sin_()  # (batch, n_noises, 2 * n_waves)
            hidden.addmm_(waves.flatten(0, 1), self._of_waves)
        for weight, bias in self._layers:
            hidden = th.addmm(bias, nn.functional.silu(hidden, inplace=True), weight)
        rest = th.addcmul(self._rest_0, self._sigma, x.unsqueeze(1)).flatten(0, 1)  # (batch * n_noises, dim)
        errors = rest.addmm_(nn.functional.silu(hidden, inplace=True), self._last).square_()
        return errors.view(n, -1) @ self._weights
