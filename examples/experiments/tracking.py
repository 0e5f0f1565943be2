"""
Rank correlation of intrinsic rewards with rarity over the states that an agent reached last, while it explores.

A reward is fitted to the states of a run in the order in which they were visited, as in exploration, and compared with the
distance of the last states to their nearest neighbors among all visited states: a reward that lags behind the agent ranks old
states well and new ones badly. Takes about ten seconds for each reward and run.

Example: python examples/experiments/tracking.py --runs runs/coverage/SquareLarge-sac-score-10 --rewards score apt rnd
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch as th
import tyro
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from sb3_exdm.benchmark.tables import markdown_table, write_text
from sb3_exdm.common.validation import check_choice, check_integers
from sb3_exdm.rewards.registry import REWARDS, make_reward
from sb3_exdm.runs.config import PlainDict
from sb3_exdm.runs.folder import RunFolder

LEARNING_STARTS, TRAIN_FREQ, BATCH_SIZE = 2000, 8, 256
"""Visited states before the first fit, between two fits, and in a minibatch."""
N_LAST = 1600
"""States reached last that are ranked, and steps between two measurements."""
N_NEIGHBORS = 12
EARLY = 16_000
"""Steps that count as early."""


def rarity(states: np.ndarray, visited: np.ndarray) -> np.ndarray:
    """
    Mean distance to the nearest neighbors among visited states.

    :param states: ``(n, dim)``, a part of ``visited``
    :param visited: ``(m, dim)``
    :return: ``(n,)``
    """
    distances, _ = cKDTree(visited).query(states, k=N_NEIGHBORS + 1)
    return distances[:, 1:].mean(axis=1)  # without the distance to itself


def track(name: str, run: Path, steps: int, gradient_steps: int, reward_kwargs: PlainDict) -> Iterator[dict[str, float]]:
    """
    Fit a reward to a run, and measure it after every 1600 steps.

    :param name: name of a reward that scores states
    :param run: folder of a run whose observations are vectors
    :param steps: steps of the run to use
    :param gradient_steps: gradient steps per fit
    :param reward_kwargs: further arguments of the reward
    :return: ``steps``, and rank correlations over the states reached ``last`` and over ``all`` visited states
    """
    folder = RunFolder(run)
    visited = folder.transitions()["next_observations"]
    visited = visited.reshape(-1, visited.shape[-1])[:steps]
    rng = np.random.default_rng(0)
    reward = make_reward(name, folder.load_reward().observation_space, seed=0, device="cpu", **reward_kwargs)
    for t in range(LEARNING_STARTS, len(visited) + 1, TRAIN_FREQ):
        reward.fit(visited[rng.integers(t, size=BATCH_SIZE)], gradient_steps=gradient_steps)
        if t % N_LAST == 0:
            groups = {"last": visited[t - N_LAST : t], "all": visited[rng.integers(t, size=N_LAST)]}
            correlations = {
                key: float(spearmanr(reward.score(states), rarity(states, visited[:t])).statistic)
                for key, states in groups.items()
            }
            yield {"steps": t, **correlations}


def run_tracking(
    runs: tuple[Path, ...],
    rewards: tuple[str, ...] = ("score", "apt", "rnd"),
    steps: int = 32_000,
    gradient_steps: int = 1,
    reward_kwargs: Annotated[PlainDict, tyro.conf.arg(metavar="JSON")] = {},  # noqa: B006 (shown as the default)
    out: Path | None = None,
) -> str:
    """
    Compare rewards on the same runs.

    :param runs: folders of ``exdm pretrain`` whose observations are vectors
    :param rewards: names of rewards that score states
    :param steps: steps of each run to use, at least 3200
    :param gradient_steps: gradient steps per fit
    :param reward_kwargs: further arguments of the rewards, in JSON
    :param out: folder for tracking.csv and tracking.md; by default nothing is written
    :return: table in Markdown
    :raises ValueError: for an unknown reward, or numbers out of range
    """
    check_integers(steps=(steps, 2 * N_LAST), gradient_steps=(gradient_steps, 1))
    for name in rewards:
        check_choice("reward", name, REWARDS)
    th.set_num_threads(1)
    rows = [
        {"reward": name, "run": run.name, **measured}
        for name in rewards
        for run in tqdm(runs, desc=name, unit="run", disable=None)
        for measured in track(name, run, steps, gradient_steps, reward_kwargs)
    ]
    figures = pd.DataFrame(rows)
    figures["phase"] = np.where(figures["steps"] <= EARLY, f"first {EARLY:,} steps", "later")
    means = figures.groupby(["reward", "phase"], sort=False)[["last", "all"]].mean().unstack("phase")
    table = means.map("{:.2f}".format)
    table.columns = [
        f"{'states reached last' if group == 'last' else 'all states'}, {phase}" for group, phase in table.columns
    ]
    report = f"Rank correlation with the distance to neighbors, mean over {len(runs)} runs:\n\n{markdown_table(table)}"
    if out is not None:
        write_text(out / "tracking.csv", figures.to_csv(index=False))
        write_text(out / "tracking.md", report)
    return report


if __name__ == "__main__":
    print(tyro.cli(run_tracking, description=__doc__))
