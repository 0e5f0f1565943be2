"""Noise levels of the score, measured from the data."""

import math

import torch as th
from torch import nn


class NoiseRange(nn.Module):
    r"""
    Smallest and largest noise ratio :math:`s = \sigma_t / \alpha_t` at which denoising distinguishes rare states from common
    ones.

    With noise far below the distance between neighboring states, the error is the noise itself, about the same for all
    states. Noise far above the extent of the data hides all states alike. Both ends of the range between are properties of
    the data: in two dimensions neighbors are a few hundredths of the extent apart, in twenty-four about a half. The lower
    end is ``neighbor_share`` times the median distance to the nearest neighbor among ``n_reference`` states, divided by
    the square root of the dimension (noise of ratio s moves a state by :math:`s \sqrt{d}`), but at most ``max_low``: in many
    dimensions the distance is that along the longest axes, and the noise would hide the differences along all others. The
    upper end is ``extent`` standard deviations of the whitened data.

    The sines and cosines in the input of the network have the same scale: the highest frequency resolves the lower end,
    the others follow in octaves.

    :param dim: width of the whitened data
    :param n_reference: number of states kept to measure the distance between neighbors
    :param neighbor_share: lower end of the range in units of that distance
    :param max_low: largest lower end, in standard deviations of the data
    :param extent: upper end of the range, in standard deviations of the data
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
        neighbor_share: float = 0.35,
        max_low: float = 0.3,
        extent: float = 1.25,
        n_frequencies: int = 3,
        update_interval: int = 100,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.neighbor_share = neighbor_share
        self.max_low = max_low
        self.extent = extent
        self.n_frequencies = n_frequencies
        self.update_interval = update_interval
        self.register_buffer("reference", th.zeros(n_reference, dim, device=device))
        self.register_buffer("low", th.tensor(0.1, dtype=th.float64))
        self.register_buffer("n_batches", th.zeros((), dtype=th.int64))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest noise ratio."""
        return self.low.item(), max(self.extent, 4.0 * self.low.item())

    @property
    def frequencies(self) -> th.Tensor:
        """Angular frequencies ``(n_frequencies,)`` that resolve the lower end of the range."""
        highest = 0.25 / self.low.item()
        return highest * 0.5 ** th.arange(self.n_frequencies - 1, -1, -1, device=self.reference.device)

    @th.no_grad()
    def update(self, batch: th.Tensor) -> bool:
        """
        Replace a sixteenth of the reference states by states of the batch and, every ``update_interval`` batches, measure
        the range anew.

        :param batch: whitened data ``(batch, dim)``
        :return: True if the range has been measured
        """
        share = 16
        chunk = len(self.reference) // share
        start = int(self.n_batches.item()) % share * chunk
        rows = batch[:: max(len(batch) // chunk, 1)]
        self.reference[start : start + chunk] = rows.repeat(math.ceil(chunk / len(rows)), 1)[:chunk]
        self.n_batches += 1
        n_batches = self.n_batches.item()
        first = n_batches == share
        if n_batches < share or (not first and n_batches % self.update_interval):
            return False
        self.low.copy_(self._measure() if first else (0.7 * self.low.log() + 0.3 * self._measure().log()).exp())
        return True

    def neighbor_distances(self, n_neighbors: int, among: slice = slice(None)) -> th.Tensor:
        """
        Compute the mean distance of each reference state to its nearest neighbors.

        :param n_neighbors: number of neighbors
        :param among: reference states that may be neighbors; all by default
        :return: ``(n_reference,)``
        """
        distances = th.cdist(self.reference, self.reference)  # (n_reference, n_reference)
        distances.fill_diagonal_(math.inf)
        return distances[:, among].topk(n_neighbors, dim=1, largest=False).values.mean(dim=1)

    def _measure(self) -> th.Tensor:
        nearest = self.neighbor_distances(1)
        # Repeated states (grids, one-hot codes, small data) do not count as neighbors.
        distinct = nearest[nearest > 1e-4]
        if len(distinct) < 8:
            return self.low
        low = self.neighbor_share * distinct.median().double() / math.sqrt(self.dim)
        return low.clamp(0.015, self.max_low)
