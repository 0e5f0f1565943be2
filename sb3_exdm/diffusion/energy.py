"""Energy model that guides a diffusion model: contrastive energy prediction (CEP)."""

import itertools
import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_exdm.diffusion.networks import FourierFeatures, NoiseLevelFeatures
from sb3_exdm.diffusion.schedule import VPSchedule, levels, stratified_levels
from sb3_exdm.diffusion.trainable import Trainable


def contrastive_energy_loss(energies: th.Tensor, predicted: th.Tensor) -> th.Tensor:
    r"""
    Compute the loss of contrastive energy prediction (Lu et al. 2023, arXiv 2304.12824, eq. 12),
    :math:`-\sum_i \mathrm{softmax}_i(E) \log \mathrm{softmax}_i(f)`, averaged over the batch. Without noise it is smallest
    where ``predicted`` equals ``energies`` up to a constant per condition.

    :param energies: energies of the clean samples, ``(batch, n_samples)``; higher is better
    :param predicted: predicted energies of the noisy samples, ``(batch, n_samples)``
    :return: scalar
    """
    return -(energies.softmax(dim=1) * predicted.log_softmax(dim=1)).sum(dim=1).mean()


class EnergyModel(Trainable):
    r"""
    Energy of noisy samples, :math:`f_\phi(x_t, t, c) \approx \log E[e^{E(x)} \mid x_t]`. Its gradient, added to the score
    of a model of :math:`p(x \mid c)`, gives that of :math:`p(x \mid c)\, e^{E(x)}` (arXiv 2304.12824, theorem 3.1).

    :param dim: width of the data
    :param condition_dim: width of the condition, 0 for an unconditional model
    :param net_arch: widths of the hidden layers
    :param frequencies: angular frequencies of the features of ``x_t``
    :param learning_rate: learning rate of Adam
    :param ema_rate: rate of the moving average of the weights for :meth:`gradient`
    :param schedule: noise schedule
    :param seed: seed of initialization and training noise; random by default
    :param device: PyTorch device
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        *,
        net_arch: Sequence[int] = (128, 128),
        frequencies: Sequence[float] = (),
        learning_rate: float = 1e-3,
        ema_rate: float = 0.99,
        schedule: VPSchedule | None = None,
        seed: int | None = None,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__(
            lambda: _EnergyNetwork(dim, condition_dim, net_arch, frequencies), learning_rate, ema_rate, seed, device
        )
        low, high = (schedule or VPSchedule()).noise_ratio_range
        self._log_snr_range = (-math.log(high), -math.log(low))

    def fit(self, samples: th.Tensor, energies: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Take one step of Adam on :func:`contrastive_energy_loss`. All samples of a condition get the same noise level.

        :param samples: samples of the model to guide, ``(batch, n_samples, dim)``
        :param energies: their energies, ``(batch, n_samples)``; higher is better
        :param condition: conditions, ``(batch, condition_dim)``
        :return: loss, a scalar
        """
        batch, n_samples, dim = samples.shape
        log_snr = stratified_levels(*self._log_snr_range, batch, self.generator)
        noise = th.randn(samples.shape, generator=self.generator, device=samples.device)
        alpha, sigma = (level[:, None, None] for level in levels(log_snr))
        x_t = (alpha * samples + sigma * noise).reshape(batch * n_samples, dim)
        repeated = None if condition is None else condition.repeat_interleave(n_samples, dim=0)
        predicted = self.network(x_t, log_snr.repeat_interleave(n_samples), repeated).reshape(batch, n_samples)
        loss = contrastive_energy_loss(energies, predicted)
        self.descend(loss)
        return loss.detach()

    def gradient(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the gradient of the energy in the noisy sample, also inside ``th.no_grad()``.

        :param x_t: noisy samples, ``(batch, dim)``
        :param log_snr: log signal-to-noise ratios, ``(batch,)``
        :param condition: conditions, ``(batch, condition_dim)``
        :return: gradients, ``(batch, dim)``, detached
        """
        with th.enable_grad():
            x_t = x_t.detach().requires_grad_()
            energy = self.average(x_t, log_snr, condition).sum()
            return th.autograd.grad(energy, x_t)[0]


class _EnergyNetwork(nn.Module):
    def __init__(self, dim: int, condition_dim: int, net_arch: Sequence[int], frequencies: Sequence[float]) -> None:
        super().__init__()
        self.features = FourierFeatures(frequencies)
        self.noise_level = NoiseLevelFeatures()
        widths = [self.features.output_dim(dim) + self.noise_level.output_dim + condition_dim, *net_arch]
        layers: list[nn.Module] = []
        for shape in itertools.pairwise(widths):
            layers += [nn.Linear(*shape), nn.SiLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None) -> th.Tensor:
        inputs = [self.features(x_t), self.noise_level(log_snr), *([] if condition is None else [condition])]
        return self.layers(th.cat(inputs, dim=1)).squeeze(1)  # (batch,)
