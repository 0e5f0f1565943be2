"""Networks that predict the noise in noisy samples."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch as th
from torch import nn


class FourierFeatures(nn.Module):
    """
    Append sines and cosines of the input at fixed frequencies, so that a small network can represent fine detail
    (Tancik et al. 2020, arXiv 2006.10739).

    :param frequencies: angular frequencies, applied to every dimension; empty for the input alone
    """

    frequencies: th.Tensor

    def __init__(self, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("frequencies", th.tensor(frequencies, dtype=th.float32))

    def output_dim(self, input_dim: int) -> int:
        """Compute the width of the output for an input of width ``input_dim``."""
        return input_dim * (1 + 2 * len(self.frequencies))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if len(self.frequencies) == 0:
            return x
        phases = (x.unsqueeze(-1) * self.frequencies).flatten(1)  # (batch, dim * n_frequencies)
        return th.cat([x, phases.sin(), phases.cos()], dim=1)


class NoiseLevelFeatures(nn.Module):
    r"""
    Encode a noise level as its log signal-to-noise ratio with sines and cosines of it. Equal steps of the log ratio are
    equally informative (Kingma et al. 2021, arXiv 2107.00630).

    :param n_frequencies: octaves of sines and cosines
    """

    frequencies: th.Tensor

    def __init__(self, n_frequencies: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 8.0 * 2.0 ** th.arange(n_frequencies))
        self.output_dim = 1 + 2 * n_frequencies

    def forward(self, log_snr: th.Tensor) -> th.Tensor:
        """Compute the features ``(batch, output_dim)`` of log signal-to-noise ratios ``(batch,)``."""
        phases = log_snr.unsqueeze(1) * self.frequencies  # (batch, n_frequencies)
        return th.cat([0.25 * log_snr.unsqueeze(1), phases.sin(), phases.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Residual block: LayerNorm, a hidden layer four times as wide, Mish, and the output layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout), nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )

    def forward(self, x: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: ``(batch, width)``
        :param mask: factors of a dropout that the caller draws, ``(batch, width)``
        """
        return x + self.layers(x if mask is None else x * mask)


class NoisePredictor(nn.Module):
    r"""
    Predictor of the noise :math:`\epsilon` in :math:`x_t = \alpha_t x + \sigma_t \epsilon`, given the noise level and
    optionally a condition.

    The network's output is the velocity :math:`v`, and :math:`\hat\epsilon = \sigma_t x_t + \alpha_t v`
    (Salimans & Ho 2022, arXiv 2202.00512, app. D). The last layer starts at zero, which is the optimal prediction for
    standard normal data: an untrained model ranks states by their distance from the mean rather than at random.

    :param dim: width of the data
    :param condition_dim: width of the condition, 0 for an unconditional model
    :param net_arch: widths of the hidden layers; with ``residual``, the number of blocks, all of the first width
    :param residual: residual blocks with LayerNorm (policies) instead of plain layers (fast state models)
    :param dropout: dropout probability in the residual blocks
    :param frequencies: angular frequencies of the features of ``x_t``, see :class:`FourierFeatures`
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        *,
        net_arch: Sequence[int] = (64, 64),
        residual: bool = False,
        dropout: float = 0.0,
        frequencies: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.features = FourierFeatures(frequencies)
        self.noise_level = NoiseLevelFeatures()
        widths = [self.features.output_dim(dim) + self.noise_level.output_dim + condition_dim, *net_arch]
        layers: list[nn.Module] = []
        if residual:
            widths = [widths[0], net_arch[0]]
            layers = [nn.Linear(widths[0], widths[1]), *(ResidualBlock(widths[1], dropout) for _ in net_arch), nn.Mish()]
        else:
            for shape in itertools.pairwise(widths):
                layers += [nn.Linear(*shape), nn.SiLU(inplace=True)]
        head = nn.Linear(widths[-1], dim)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.velocity = nn.Sequential(*layers, head)

    def forward(
        self, x_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None
    ) -> th.Tensor:
        """
        :param x_t: noisy samples, ``(batch, dim)``
        :param alpha: factor of the data, ``(batch,)``
        :param sigma: factor of the noise, ``(batch,)``
        :param log_snr: ``log(alpha / sigma)``, ``(batch,)``
        :param condition: conditions, ``(batch, condition_dim)``; None for an unconditional model
        :return: predicted noise, ``(batch, dim)``
        """
        return sigma.unsqueeze(1) * x_t + alpha.unsqueeze(1) * self.velocity(self.inputs(x_t, log_snr, condition))

    def inputs(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """Compute the input of the first layer ``(batch, width)``; the parameters are those of :meth:`forward`."""
        parts = [self.features(x_t), self.noise_level(log_snr), *([] if condition is None else [condition])]
        return th.cat(parts, dim=1)

    def velocity_at(self, log_snr: th.Tensor, condition: th.Tensor | None = None) -> Callable[[th.Tensor, int], th.Tensor]:
        """
        Prepare the velocity at fixed noise levels. The parts of the first layer that depend on the levels and on the condition
        are computed once for all evaluations.

        :param log_snr: log signal-to-noise ratios of the levels, ``(n_levels,)``
        :param condition: conditions, ``(batch, condition_dim)``
        :return: function of noisy samples ``(batch, dim)`` and the index of a level, with velocities ``(batch, dim)``
        """
        first, *layers = self.velocity
        assert isinstance(first, nn.Linear)
        levels = self.noise_level(log_snr)  # (n_levels, width)
        condition_dim = 0 if condition is None else condition.shape[1]
        data_dim = first.in_features - levels.shape[1] - condition_dim
        by_data, by_level, by_condition = first.weight.split([data_dim, levels.shape[1], condition_dim], dim=1)
        offset = nn.functional.linear(levels, by_level, first.bias)  # (n_levels, hidden)
        known = None if condition is None else nn.functional.linear(condition, by_condition)  # (batch, hidden)

        def velocity(x_t: th.Tensor, level: int) -> th.Tensor:
            hidden = nn.functional.linear(self.features(x_t), by_data, offset[level])
            hidden = hidden if known is None else hidden + known
            for layer in layers:
                hidden = layer(hidden)
            return hidden

        return velocity
