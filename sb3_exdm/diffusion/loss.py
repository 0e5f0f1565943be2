"""The denoising objective and its known optimum."""

import torch as th


def denoising_error(predicted_noise: th.Tensor, noise: th.Tensor) -> th.Tensor:
    r"""
    Squared error of a noise prediction, :math:`\|\hat\epsilon - \epsilon\|^2`, summed over dimensions
    (ExDM, arXiv 2502.07279, eq. 3; DDPM, arXiv 2006.11239, eq. 14).

    :param predicted_noise: ``(batch, dim)``
    :param noise: ``(batch, dim)``
    :return: ``(batch,)``
    """
    return (predicted_noise - noise).square().sum(dim=1)


def gaussian_denoising_error(alpha: th.Tensor, sigma: th.Tensor, std: float, dim: int) -> th.Tensor:
    r"""
    Smallest expected :func:`denoising_error` that any model can reach on data from :math:`N(0, s^2 I)`:
    :math:`d\,\alpha^2 s^2 / (\alpha^2 s^2 + \sigma^2)`, the posterior variance of the noise.

    :param alpha: factor of the data
    :param sigma: factor of the noise
    :param std: standard deviation s of the data
    :param dim: dimension d
    :return: same shape as ``alpha``
    """
    signal = (alpha * std).square()
    return dim * signal / (signal + sigma.square())
