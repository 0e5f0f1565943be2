"""Denoising error for fixed noises with an exact divergence, for data of many dimensions."""

import torch as th
from torch import nn

from sb3_exdm.common.state import Derived
from sb3_exdm.diffusion import NoisePredictor

CHUNK = 2**18
"""Number of hidden units that are computed at once on a CPU; more of them do not fit into its cache."""


class CorrectedDenoisingError(Derived):
    r"""
    Mean of :math:`\|\hat\epsilon(x_t) - \epsilon\|^2` over fixed noises, with a control variate against their small number.

    A few noises see a few directions of the data. What they see of the average over all directions is the larger error in
    many dimensions. By Stein's identity :math:`E[\epsilon^\top \hat\epsilon(\alpha x + \sigma \epsilon)] =
    \sigma E[\nabla \cdot \hat\epsilon]`, thus :math:`\epsilon^\top \hat\epsilon - \sigma \nabla \cdot \hat\epsilon` has the
    mean zero and may be added in any multiple. For :math:`\hat\epsilon = q \epsilon` along an axis, with a gain q between 0
    and 1, the squared error has the coefficient :math:`(1 - q)^2` of :math:`\epsilon^2`: of a range of 1, and still of 1,
    :math:`q^2`, with twice the correction (Hyvärinen's implicit score matching). Added once, it leaves :math:`1 - q + q^2`,
    of a range of 1/4. The error becomes

    .. math:: \|\hat\epsilon - \tfrac12 \epsilon\|^2 - \sigma \nabla \cdot \hat\epsilon + \tfrac34 d.

    The divergence of a network with one hidden layer, :math:`v = U \phi(W x_t + b)`, is a weighted sum of its units,
    :math:`\nabla \cdot v = \sum_h \phi'_h (W U)_{hh}`. The interface is that of
    :class:`~sb3_exdm.rewards.denoising_error.DenoisingError`.

    :param noises: noises of length sqrt(dim), ``(n_levels, n_noises, dim)``
    :param alpha: factor of the data, ``(n_levels,)``
    :param sigma: factor of the noise, ``(n_levels,)``
    :param levels: encoded noise levels, ``(n_levels, level_dim)``
    """

    def __init__(self, noises: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, levels: th.Tensor) -> None:
        n_per_level = noises.shape[1]
        alpha, sigma, self._levels = (level.repeat_interleave(n_per_level, dim=0) for level in (alpha, sigma, levels))
        noises = noises.flatten(0, 1)  # (n_levels * n_noises, dim), from here on one level per noise
        self.n_noises, self.dim = noises.shape
        self._alpha, self._sigma = alpha.unsqueeze(1), sigma.unsqueeze(1)
        self._shift = self._sigma * noises  # (n_noises, dim)
        # (noise_prediction - noise / 2) / alpha = v + sigma x - target_0
        self._target_0 = (0.5 - self._sigma.square()) / self._alpha * noises  # (n_noises, dim)
        self._weights = (alpha.square() / self.n_noises).repeat_interleave(self.dim)
        self._divergence_weights = -alpha * sigma / self.n_noises
        self._constant = self.dim * (0.75 - sigma.square().mean())

    @staticmethod
    def supports(network: NoisePredictor) -> bool:
        """Tell networks of one hidden layer, and without sines and cosines of the data, from others."""
        layers = [type(layer) for layer in network.velocity]
        return layers == [nn.Linear, nn.SiLU, nn.Linear] and len(network.features.frequencies) == 0

    @th.inference_mode()
    def set_network(self, network: NoisePredictor) -> None:
        """
        Take the weights of a network. Call it again when they have changed.

        :param network: network for which :meth:`supports` holds
        """
        first, _, last = network.velocity
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        # The network reads [x_t, level, condition]: see NoisePredictor.inputs.
        parts = [self.dim, self._levels.shape[1], first.in_features - self.dim - self._levels.shape[1]]
        self._of_x, of_levels, self._of_condition = first.weight.T.split(parts)
        self._hidden_0 = self._shift @ self._of_x + th.addmm(first.bias, self._levels, of_levels)  # (n_noises, hidden)
        self._last = last.weight.T
        self._rest_0 = last.bias - self._target_0  # (n_noises, dim)
        self._divergence_of_units = (self._of_x * last.weight).sum(dim=0)  # (hidden,)

    @th.inference_mode()
    def errors(self, x: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the mean denoising error.

        :param x: data, ``(batch, dim)``
        :param condition: ``(batch, condition_dim)``
        :return: ``(batch,)``
        """
        n_at_once = len(x) if x.is_cuda else max(CHUNK // self._hidden_0.numel(), 1)
        if len(x) <= n_at_once:
            return self._errors(x, condition)
        chunks = range(0, len(x), n_at_once)
        return th.cat(
            [self._errors(x[i : i + n_at_once], None if condition is None else condition[i : i + n_at_once]) for i in chunks]
        )

    def _errors(self, x: th.Tensor, condition: th.Tensor | None) -> th.Tensor:
        hidden = th.addcmul(self._hidden_0, self._alpha, (x @ self._of_x).unsqueeze(1))  # (batch, n_noises, hidden)
        if condition is not None:
            hidden.add_((condition @ self._of_condition).unsqueeze(1))
        gate = hidden.sigmoid()
        unit = hidden.mul_(gate)
        rest = th.addcmul(self._rest_0, self._sigma, x.unsqueeze(1)).flatten(0, 1)  # (batch * n_noises, dim)
        squares = rest.addmm_(unit.flatten(0, 1), self._last).square_().view(len(x), -1)
        slope = gate.addcmul_(gate, unit, value=-1.0).add_(unit)  # derivative of SiLU
        divergence = slope @ self._divergence_of_units  # of v, (batch, n_noises)
        return squares @ self._weights + divergence @ self._divergence_weights + self._constant
