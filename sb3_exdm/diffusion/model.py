"""A diffusion model: a network, a noise schedule, an optimizer, and nothing about reinforcement learning."""

import secrets
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch as th

from sb3_exdm.diffusion.loss import denoising_error
from sb3_exdm.diffusion.networks import NoisePredictor
from sb3_exdm.diffusion.schedule import VPSchedule, stratified_levels
from sb3_exdm.diffusion.solver import integrate, solver_steps
from sb3_exdm.diffusion.trainable import Trainable

ERRORS = ("noise", "data")
"""What the error of a prediction can be measured in."""


class DiffusionModel(Trainable):
    r"""
    Fits :math:`p(x)` or :math:`p(x \mid c)` by denoising and samples from it.

    The data should be of about unit scale. Noise levels are drawn log-uniformly in the ratio
    :math:`\sigma_t / \alpha_t` between ``noise_ratios``: every level then weighs the same in the variational bound on
    the log-likelihood (Kingma et al. 2021, arXiv 2107.00630, eq. 17).

    :param dim: width of the data
    :param condition_dim: width of the condition, 0 for an unconditional model
    :param net_arch: widths of the hidden layers
    :param residual: residual blocks, see :class:`~sb3_exdm.diffusion.networks.NoisePredictor`
    :param dropout: dropout probability in residual blocks
    :param frequencies: angular frequencies of the input features
    :param learning_rate: of Adam
    :param ema_rate: rate of the moving average of the weights that :meth:`predict_noise` uses, 0 for none
    :param noise_ratios: min_q and largest noise ratio to train on; the whole schedule by default
    :param schedule: noise schedule
    :param seed: seed of initialization, training noise and sampling
    :param device: PyTorch device
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
        learning_rate: float = 1e-3,
        ema_rate: float = 0.99,
        noise_ratios: tuple[float, float] | None = None,
        schedule: VPSchedule | None = None,
        seed: int | None = None,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"The data must have at least one dimension, got dim={dim}.")
        self.dim = dim
        self.condition_dim = condition_dim
        self.ema_rate = ema_rate
        self.schedule = schedule or VPSchedule()
        self.generator = th.Generator(device=device)
        self.generator.manual_seed(secrets.randbits(32) if seed is None else seed)
        with th.random.fork_rng(devices=[]):  # initialization must not disturb the caller's generator
            th.manual_seed(self.generator.initial_seed())
            self.network = NoisePredictor(
                dim, condition_dim, net_arch=net_arch, residual=residual, dropout=dropout, frequencies=frequencies
            ).to(device)
        self.average = deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
        self._weights = list(self.network.parameters())
        self._average_weights = list(self.average.parameters())
        self.noise_ratios = noise_ratios or self.schedule.noise_ratio_range

    @property
    def noise_ratios(self) -> tuple[float, float]:
        r"""Smallest and largest :math:`\sigma_t / \alpha_t` that training draws."""
        return self._noise_ratios

    @noise_ratios.setter
    def noise_ratios(self, noise_ratios: tuple[float, float]) -> None:
        low, high = noise_ratios
        if not 0.0 < low <= high:
            raise ValueError(f"Noise ratios must be positive and in increasing order, got {noise_ratios}.")
        self._noise_ratios = (float(low), float(high))
        low_log_snr, high_log_snr = -th.tensor([high, low], dtype=th.float64).log()
        self._log_snr_range = (low_log_snr.item(), high_log_snr.item())

    def levels(self, log_snr: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param log_snr: log signal-to-noise ratios
        :return: the factors of data and noise, each of the same shape
        """
        # alpha^2 + sigma^2 = 1 makes both a sigmoid of twice the log ratio: no time is needed.
        return th.sigmoid(2.0 * log_snr).sqrt(), th.sigmoid(-2.0 * log_snr).sqrt()

    def noised(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Noise a minibatch at random levels.

        :param x: data, ``(batch, dim)``
        :return: noisy samples ``(batch, dim)``, the noise in them ``(batch, dim)``, log signal-to-noise ratios ``(batch,)``
        """
        log_snr = stratified_levels(*self._log_snr_range, len(x), self.generator)
        noise = th.randn(x.shape, generator=self.generator, device=x.device)
        alpha, sigma = self.levels(log_snr)
        return alpha.unsqueeze(1) * x + sigma.unsqueeze(1) * noise, noise, log_snr

    def loss(
        self,
        x: th.Tensor,
        condition: th.Tensor | None = None,
        *,
        weight: th.Tensor | None = None,
        target: Callable[[th.Tensor, th.Tensor], th.Tensor] | None = None,
        error_of: str = "noise",
    ) -> th.Tensor:
        r"""
        The mean denoising error of a minibatch, differentiable in the weights.

        :param x: data, ``(batch, dim)``
        :param condition: ``(batch, condition_dim)``
        :param weight: how much each row counts, ``(batch,)``; equally by default
        :param target: maps noisy samples ``(batch, dim)`` and log signal-to-noise ratios ``(batch,)`` to the noise that
            shall be predicted, for distillation; by default the noise that was added
        :param error_of: whose error counts, a name in :data:`ERRORS`: ``"noise"`` or ``"data"``, which is
            :math:`(\sigma_t / \alpha_t)^2` times that of the noise. Where the condition decides the data, as a deterministic
            policy decides actions, they must be predicted out of pure noise, and that error of the noise hardly counts.
        :return: a scalar
        """
        if error_of not in ERRORS:
            raise ValueError(f"Unknown error_of {error_of!r}; choose one of {', '.join(ERRORS)}.")
        x_t, noise, log_snr = self.noised(x)
        if target is not None:
            noise = target(x_t, log_snr)
        alpha, sigma = self.levels(log_snr)
        self.network.train()
        error = denoising_error(self.network(x_t, alpha, sigma, log_snr, condition), noise)
        if error_of == "data":
            error = (sigma / alpha).square() * error
        return error.mean() if weight is None else (weight * error).mean()

    def fit(
        self,
        x: th.Tensor,
        condition: th.Tensor | None = None,
        *,
        weight: th.Tensor | None = None,
        target: Callable[[th.Tensor, th.Tensor], th.Tensor] | None = None,
        error_of: str = "noise",
    ) -> th.Tensor:
        """
        One step of Adam on the :meth:`loss` of a minibatch; the arguments are the same.

        :return: the loss, a scalar
        """
        loss = self.loss(x, condition, weight=weight, target=target, error_of=error_of)
        self.descend(loss)
        return loss.detach()

    def predict_noise(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Noise prediction of the averaged weights; differentiable in ``x_t``.

        :param x_t: noisy samples, ``(batch, dim)``
        :param log_snr: log signal-to-noise ratio, ``(batch,)``
        :param condition: ``(batch, condition_dim)``
        :return: ``(batch, dim)``
        """
        alpha, sigma = self.levels(log_snr)
        return self.average(x_t, alpha, sigma, log_snr, condition)

    def sample(
        self,
        n_samples: int,
        condition: th.Tensor | None = None,
        *,
        n_sampling_steps: int = 15,
        grid: str = "log_snr",
        bound: float | None = None,
        guidance: Callable[[th.Tensor, th.Tensor], th.Tensor] | None = None,
        noise: th.Tensor | None = None,
        network: NoisePredictor | None = None,
    ) -> th.Tensor:
        r"""
        Draw samples by solving the reverse process from noise. Differentiable; wrap it in ``th.no_grad()`` to act.

        :param n_samples: number of samples
        :param condition: ``(n_samples, condition_dim)``
        :param n_sampling_steps: network evaluations per sample, 5 to 15 are usual
        :param grid: spacing of the steps, see :func:`~sb3_exdm.diffusion.solver.time_grid`
        :param bound: where the data lie in ``[-bound, bound]``, keeps every prediction of them there
        :param guidance: maps noisy samples ``(n_samples, dim)`` and log signal-to-noise ratios ``(n_samples,)`` to a gradient
            :math:`g` that is added to the score, so that :math:`\hat\epsilon` becomes :math:`\hat\epsilon - \sigma_t g`
        :param noise: start noise, ``(n_samples, dim)``; drawn by default
        :param network: weights to sample with; the averaged ones by default
        :return: ``(n_samples, dim)``
        """
        device = self._weights[0].device
        if noise is None:
            noise = th.randn((n_samples, self.dim), generator=self.generator, device=device)
        steps = solver_steps(self.schedule, n_sampling_steps, grid)
        log_snr = th.tensor([step.log_snr for step in steps], device=device)
        velocity = (network or self.average).velocity_at(log_snr, condition)

        def predict_data(x_t: th.Tensor, i: int) -> th.Tensor:
            alpha, sigma = steps[i].alpha, steps[i].sigma
            data = alpha * x_t - sigma * velocity(x_t, i)  # (x_t - sigma * noise) / alpha
            if guidance is not None:
                data = data + sigma**2 / alpha * guidance(x_t, log_snr[i].expand(len(x_t)))
            return data if bound is None else data.clamp(-bound, bound)

        return integrate(predict_data, noise, steps)
