"""Input of the networks of intrinsic rewards."""

import torch as th

from sb3_exdm.common.validation import check_integers
from sb3_exdm.diffusion.networks import FourierFeatures

N_FREQUENCIES = 5
"""Octaves of sines and cosines in low dimension."""
MAX_DIM = 8
"""Largest dimension with sines and cosines by default. In more dimensions they take much time and help little."""
HIGHEST_FREQUENCY = 16.0
"""Highest angular frequency of :class:`StateFeatures`, per standard deviation of the data."""


def default_frequencies(dim: int, n_frequencies: int | None = None) -> int:
    """
    Choose the number of octaves of sines and cosines. All rewards with a network share this rule.

    :param dim: width of the whitened data
    :param n_frequencies: number of octaves, 0 for none; None for :data:`N_FREQUENCIES`, and none in more than
        :data:`MAX_DIM` dimensions
    :raises ValueError: for a negative number
    """
    if n_frequencies is None:
        return N_FREQUENCIES if dim <= MAX_DIM else 0
    check_integers(n_frequencies=(n_frequencies, 0))
    return n_frequencies


class StateFeatures(FourierFeatures):
    """
    Whitened states, and sines and cosines of them in fixed octaves (Tancik et al. 2020, arXiv 2006.10739): a network of the
    plain states is too smooth to distinguish neighboring ones.

    The frequencies are fixed, for functions that must not change, such as the target of random network distillation. The
    noisy data of a :class:`~sb3_exdm.rewards.score.ScoreModel` have as many octaves, which follow its noise range.

    >>> StateFeatures(2).width
    22
    >>> StateFeatures(2, 0)(th.zeros(1, 2)).shape
    torch.Size([1, 2])

    :param dim: width of the whitened states
    :param n_frequencies: octaves up to :data:`HIGHEST_FREQUENCY`, see :func:`default_frequencies`
    :param device: PyTorch device
    """

    def __init__(self, dim: int, n_frequencies: int | None = None, device: th.device | str = "cpu") -> None:
        n_octaves = default_frequencies(dim, n_frequencies)
        super().__init__([HIGHEST_FREQUENCY * 0.5**i for i in reversed(range(n_octaves))])
        self.to(device)
        self.width = self.output_dim(dim)
        """Width of the features."""
