"""The rule that sets the noise levels of the score from the data."""

import math

import torch as th
from torch import nn


class NoiseRange(nn.Module):
    r"""
    Smallest and largest noise ratio :math:`s = \sigma_t / \alpha_t` at which denoising tells rare states from common ones.

    Noise far below the distance between neighboring states moves a state nowhere: the error is the noise itself, about
    the same everywhere. Noise far above the extent of the data hides every state alike. Between the two lies the
    band, and both ends are properties of the data: in two dimensions neighbors are a few hundredths of the extent
    apart, in twenty-four about a half. The lower end is therefore ``neighbor_share`` times the median distance to the
    nearest neighbor among ``n_reference`` states, per square root of the dimension (as noise of ratio s moves a
    state by :math:`s \sqrt{d}`); the upper end is ``extent`` standard deviations of the whitened data.

    The same scale sets the sines and cosines that the network sees: the highest frequency resolves the lower end,
    the others follow in octaves.

    :param dim: width of the (whitened) data
    :param n_reference: states kept to measure the distance between neighbors
    :param neighbor_share: lower end of the band in units of that distance
    :param extent: upper end of the band, in standard deviations of the data
    :param n_frequencies: number of octaves of sines and cosines
    :param update_interval: minibatches between two measurements
    :param device: PyTorch device
    """

    reference: th.Tensor
    low: th.Tensor
    n_batches: th.Tensor

    def __init__(
        self,
        dim: int,
        *,
        n_reference: int = 512,
        neighbor_share: float = 0.7,
        extent: float = 1.25,
        n_frequencies: int = 3,
        update_interval: int = 100,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.neighbor_share = neighbor_share
        self.extent = extent
        self.n_frequencies = n_frequencies
        self.update_interval = update_interval
        self.register_buffer("reference", th.zeros(n_reference, dim, device=device))
        self.register_buffer("low", th.tensor(0.1, dtype=th.float64))
        self.register_buffer("n_batches", th.zeros((), dtype=th.int64))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest noise ratio of the band."""
        return self.low.item(), max(self.extent, 4.0 * self.low.item())

    @property
    def frequencies(self) -> th.Tensor:
        """Angular frequencies ``(n_frequencies,)`` that resolve the lower end of the band."""
        highest = 0.25 / self.low.item()
        return highest * 0.5 ** th.arange(self.n_frequencies - 1, -1, -1, device=self.reference.device)

    @th.no_grad()
    def update(self, batch: th.Tensor) -> bool:
        """
        Keep a part of the batch as reference states and, every ``update_interval`` batches, measure the band anew.

        :param batch: whitened data ``(batch, dim)``
        :return: whether the band has moved
        """
        n_reference = len(self.reference)
        n_batches = self.n_batches.item()
        share = 16
        chunk = n_reference // share
        start = int(n_batches) % share * chunk
        rows = th.arange(chunk, device=batch.device) * max(len(batch) // chunk, 1) % len(batch)
        self.reference[start : start + chunk] = batch[rows]
        self.n_batches += 1
        first = n_batches + 1 == share
        if not first and (n_batches + 1) % self.update_interval:
            return False
        if n_batches + 1 < share:
            return False
        self.low.copy_(self._measure() if first else (0.7 * self.low.log() + 0.3 * self._measure().log()).exp())
        return True

    def neighbor_distances(self, n_neighbors: int) -> th.Tensor:
        """
        :param n_neighbors: number of neighbors
        :return: distance of each reference state to that many others, on average, ``(n_reference,)``
        """
        distances = th.cdist(self.reference, self.reference)  # (n_reference, n_reference)
        distances.fill_diagonal_(math.inf)
        return distances.topk(n_neighbors, dim=1, largest=False).values.mean(dim=1)

    def _measure(self) -> th.Tensor:
        nearest = self.neighbor_distances(1)
        # Repeated states (grids, one-hot codes, small data) are no neighbors: look at distinct ones.
        distinct = nearest[nearest > 1e-4]
        if len(distinct) < 8:
            return self.low
        low = self.neighbor_share * distinct.median().double() / math.sqrt(self.dim)
        return low.clamp(0.015, 0.5)
