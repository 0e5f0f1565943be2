"""An energy that steers a diffusion model: contrastive energy prediction (CEP)."""

import math
import secrets
from collections.abc import Sequence
from copy import deepcopy

import torch as th
from torch import nn

from sb3_exdm.diffusion.networks import FourierFeatures, NoiseLevelFeatures
from sb3_exdm.diffusion.schedule import VPSchedule, stratified_levels
from sb3_exdm.diffusion.trainable import Trainable


def contrastive_energy_loss(energies: th.Tensor, predicted: th.Tensor) -> th.Tensor:
    r"""
    Contrastive energy prediction (Lu et al. 2023, arXiv 2304.12824, eq. 12):
    :math:`-\sum_i \mathrm{softmax}_i(E) \log \mathrm{softmax}_i(f)`, averaged over the batch. Smallest where ``predicted``
    equals ``energies`` up to a constant per row, if there is no noise.

    :param energies: of the clean candidates, ``(batch, n_candidates)``; higher is better
    :param predicted: of the noisy candidates, ``(batch, n_candidates)``
    :return: a scalar
    """
    return -(energies.softmax(dim=1) * predicted.log_softmax(dim=1)).sum(dim=1).mean()


class EnergyModel(Trainable):
    r"""
    The energy of noisy samples, :math:`f_\phi(x_t, t, c) \approx \log E[e^{E(x)} \mid x_t]`. Its gradient, added to the score
    of a model of :math:`p(x \mid c)`, gives that of :math:`p(x \mid c)\, e^{E(x)}` (arXiv 2304.12824, theorem 3.1).

    :param dim: width of the data
    :param condition_dim: width of the condition, 0 for an unconditional model
    :param net_arch: widths of the hidden layers
    :param frequencies: angular frequencies of the features of ``x_t``
    :param learning_rate: of Adam
    :param ema_rate: rate of the moving average of the weights that :meth:`gradient` uses
    :param schedule: noise schedule
    :param seed: seed of initialization and training noise
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
        super().__init__()
        self.ema_rate = ema_rate
        low, high = (schedule or VPSchedule()).noise_ratio_range
        self._log_snr_range = (-math.log(high), -math.log(low))
        self.generator = th.Generator(device=device)
        self.generator.manual_seed(secrets.randbits(32) if seed is None else seed)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(self.generator.initial_seed())
            self.network = _EnergyNetwork(dim, condition_dim, net_arch, frequencies).to(device)
        self.average = deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
        self._weights = list(self.network.parameters())
        self._average_weights = list(self.average.parameters())

    def fit(self, candidates: th.Tensor, energies: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        One step of Adam on :func:`contrastive_energy_loss`, with one noise level for all candidates of a row.

        :param candidates: data, ``(batch, n_candidates, dim)``, drawn from the model that is to be steered
        :param energies: their energies, ``(batch, n_candidates)``; higher is better
        :param condition: ``(batch, condition_dim)``
        :return: the loss, a scalar
        """
        batch, n_candidates, dim = candidates.shape
        log_snr = stratified_levels(*self._log_snr_range, batch, self.generator)
        noise = th.randn(candidates.shape, generator=self.generator, device=candidates.device)
        alpha, sigma = (level.sqrt()[:, None, None] for level in (th.sigmoid(2.0 * log_snr), th.sigmoid(-2.0 * log_snr)))
        x_t = (alpha * candidates + sigma * noise).reshape(batch * n_candidates, dim)
        repeated = None if condition is None else condition.repeat_interleave(n_candidates, dim=0)
        predicted = self.network(x_t, log_snr.repeat_interleave(n_candidates), repeated).reshape(batch, n_candidates)
        loss = contrastive_energy_loss(energies, predicted)
        self.descend(loss)
        return loss.detach()

    def gradient(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Gradient of the energy in the noisy sample; also inside of ``th.no_grad()``.

        :param x_t: noisy samples, ``(batch, dim)``
        :param log_snr: log signal-to-noise ratios, ``(batch,)``
        :param condition: ``(batch, condition_dim)``
        :return: ``(batch, dim)``, detached
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
        width = self.features.output_dim(dim) + self.noise_level.output_dim + condition_dim
        layers: list[nn.Module] = []
        for hidden in net_arch:
            layers.extend([nn.Linear(width, hidden), nn.SiLU(inplace=True)])
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None) -> th.Tensor:
        inputs = [self.features(x_t), self.noise_level(log_snr)]
        if condition is not None:
            inputs.append(condition)
        return self.layers(th.cat(inputs, dim=1)).squeeze(1)  # (batch,)
