"""Diffusion model: noise predictor, noise schedule, training and sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th

from sb3_exdm.common.validation import check_choice
from sb3_exdm.diffusion.fused_fit import FusedFit
from sb3_exdm.diffusion.networks import NoisePredictor
from sb3_exdm.diffusion.schedule import NoisySamples, VPSchedule, levels, stratified_levels
from sb3_exdm.diffusion.solver import integrate, solver_steps
from sb3_exdm.diffusion.trainable import Trainable

ERRORS = ("noise", "data")
"""Quantities whose prediction error is the loss."""


def denoising_error(predicted_noise: th.Tensor, noise: th.Tensor) -> th.Tensor:
    r"""
    Compute the squared error of a noise prediction, :math:`\|\hat\epsilon - \epsilon\|^2`, summed over dimensions
    (ExDM, arXiv 2502.07279, eq. 3; DDPM, arXiv 2006.11239, eq. 14).

    :param predicted_noise: predicted noise, ``(batch, dim)``
    :param noise: noise in the samples, ``(batch, dim)``
    :return: errors, ``(batch,)``
    """
    return (predicted_noise - noise).square().sum(dim=1)


class DiffusionModel(Trainable):
    r"""
    Diffusion model of :math:`p(x)` or :math:`p(x \mid c)`, fitted by denoising.

    The data should be of about unit scale. Noise levels are drawn log-uniformly in the ratio
    :math:`\sigma_t / \alpha_t` between ``noise_ratios``, so that every level has the same weight in the variational bound on
    the log-likelihood (Kingma et al. 2021, arXiv 2107.00630, eq. 17).

    :param dim: width of the data
    :param condition_dim: width of the condition, 0 for an unconditional model
    :param net_arch: widths of the hidden layers
    :param residual: residual blocks, see :class:`~sb3_exdm.diffusion.networks.NoisePredictor`
    :param dropout: dropout probability in residual blocks
    :param frequencies: angular frequencies of the input features
    :param learning_rate: learning rate of Adam
    :param ema_rate: rate of the moving average of the weights for :meth:`predict_noise` and :meth:`sample`, 0 for none
    :param noise_ratios: smallest and largest noise ratio of the training; the whole schedule by default
    :param schedule: noise schedule
    :param seed: seed of initialization, training noise and sampling; random by default
    :param device: PyTorch device
    :raises ValueError: for data without dimensions, or noise ratios out of range
    """

    network: NoisePredictor
    average: NoisePredictor
    levels = staticmethod(levels)

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
        if dim < 1:
            raise ValueError(f"The data must have at least one dimension, got dim={dim}.")
        super().__init__(
            lambda: NoisePredictor(
                dim, condition_dim, net_arch=net_arch, residual=residual, dropout=dropout, frequencies=frequencies
            ),
            learning_rate,
            ema_rate,
            seed,
            device,
        )
        self.dim = dim
        self.condition_dim = condition_dim
        self.schedule = schedule or VPSchedule()
        self.noise_ratios = noise_ratios or self.schedule.noise_ratio_range
        self.bound: float | None = None
        """Default of ``bound`` in :meth:`sample`."""
        self._fused_fit: FusedFit | None = None

    @property
    def noise_ratios(self) -> tuple[float, float]:
        r"""Smallest and largest :math:`\sigma_t / \alpha_t` of the training."""
        return self._noise_ratios

    @noise_ratios.setter
    def noise_ratios(self, noise_ratios: tuple[float, float]) -> None:
        low, high = noise_ratios
        if not 0.0 < low <= high:
            raise ValueError(f"Noise ratios must be positive and in increasing order, got {noise_ratios}.")
        self._noise_ratios = (float(low), float(high))
        low_log_snr, high_log_snr = -th.tensor([high, low], dtype=th.float64).log()
        self._log_snr_range = (low_log_snr.item(), high_log_snr.item())

    def noised(self, x: th.Tensor) -> NoisySamples:
        """
        Noise a minibatch at random levels.

        :param x: data, ``(batch, dim)``
        """
        log_snr = stratified_levels(*self._log_snr_range, len(x), self.generator).unsqueeze(1)
        noise = th.randn(x.shape, generator=self.generator, device=x.device)
        alpha, sigma = levels(log_snr)
        return NoisySamples((alpha * x).addcmul_(sigma, noise), noise, log_snr, alpha, sigma)

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
        Compute the mean denoising error of a minibatch, differentiable in the weights.

        :param x: data, ``(batch, dim)``
        :param condition: conditions, ``(batch, condition_dim)``
        :param weight: weights of the samples, ``(batch,)``; 1 by default
        :param target: maps noisy samples ``(batch, dim)`` and log signal-to-noise ratios ``(batch,)`` to the noise to predict,
            for distillation; the noise that was added by default
        :param error_of: a name in :data:`ERRORS`: ``"noise"``, or ``"data"``, which is :math:`(\sigma_t / \alpha_t)^2` times
            the error of the noise. Where the condition determines the data, as for a deterministic policy, the data must be
            predicted from pure noise, and the error of the noise hardly depends on that prediction.
        :return: scalar
        """
        check_choice("error_of", error_of, ERRORS)
        samples = self.noised(x)
        log_snr, alpha, sigma = (level.squeeze(1) for level in (samples.log_snr, samples.alpha, samples.sigma))
        noise = samples.noise if target is None else target(samples.x_t, log_snr)
        self.network.train()
        error = denoising_error(self.network(samples.x_t, alpha, sigma, log_snr, condition), noise)
        if error_of == "data":
            error = (sigma / alpha).square() * error
        return error.mean() if weight is None else (weight * error).mean()

    def fit(self, x: th.Tensor, condition: th.Tensor | None = None, **kwargs: Any) -> th.Tensor:
        """
        Take one step of Adam on the :meth:`loss` of a minibatch. Without further arguments, plain layers are updated with
        written-out gradients, see :class:`~sb3_exdm.diffusion.fused_fit.FusedFit`: the same numbers in less time.

        :param x: data, ``(batch, dim)``
        :param condition: conditions, ``(batch, condition_dim)``
        :param kwargs: further arguments of :meth:`loss`
        :return: loss, a scalar
        """
        if not kwargs and FusedFit.supports(self.network):
            optimizer, _ = self.flat_weights()
            if self._fused_fit is None or self._fused_fit.optimizer is not optimizer:
                self._fused_fit = FusedFit(self.network, optimizer)
            loss = self._fused_fit(self.noised(x), condition)
            self.step()
            return loss
        loss = self.loss(x, condition, **kwargs)
        self.descend(loss)
        return loss.detach()

    def predict_noise(self, x_t: th.Tensor, log_snr: th.Tensor, condition: th.Tensor | None = None) -> th.Tensor:
        """
        Predict the noise with the averaged weights, differentiable in ``x_t``.

        :param x_t: noisy samples, ``(batch, dim)``
        :param log_snr: log signal-to-noise ratios, ``(batch,)``
        :param condition: conditions, ``(batch, condition_dim)``
        :return: predicted noise, ``(batch, dim)``
        """
        alpha, sigma = levels(log_snr)
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
        Draw samples by solving the reverse process. Differentiable; use ``th.no_grad()`` to act.

        :param n_samples: number of samples
        :param condition: conditions, ``(n_samples, condition_dim)``
        :param n_sampling_steps: network evaluations per sample, usually 5 to 15
        :param grid: spacing of the steps, see :func:`~sb3_exdm.diffusion.solver.time_grid`
        :param bound: bound of the predicted data at every step, for data in ``[-bound, bound]``; by default that of the model,
            or none
        :param guidance: maps noisy samples ``(n_samples, dim)`` and log signal-to-noise ratios ``(n_samples,)`` to a gradient
            :math:`g` that is added to the score: :math:`\hat\epsilon` becomes :math:`\hat\epsilon - \sigma_t g`
        :param noise: start noise, ``(n_samples, dim)``; drawn by default
        :param network: network to sample with; the averaged weights by default
        :return: samples, ``(n_samples, dim)``
        """
        device = self._weights[0].device
        if noise is None:
            noise = th.randn((n_samples, self.dim), generator=self.generator, device=device)
        bound = self.bound if bound is None else bound
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

    def training_state(self) -> dict[str, Any]:
        """Return the states of optimizer and generator, and the bound of the samples."""
        return {**super().training_state(), "bound": self.bound}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned. Older states have no bound."""
        super().load_training_state(state)
        self.bound = state.get("bound")
