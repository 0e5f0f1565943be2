"""
Explore a maze of gymnasium-robotics, which has Dict observations, with SAC and a wrapper; compare with uniform actions.

Needs the extra robotics: pip install "sb3-exdm[robotics]".
"""

import argparse

import gymnasium as gym
import gymnasium_robotics
from gymnasium_robotics.envs.maze.maps import GOAL, MEDIUM_MAZE, RESET
from stable_baselines3 import SAC

import sb3_exdm

gym.register_envs(gymnasium_robotics)

MAZE = [list(row) for row in MEDIUM_MAZE]
MAZE[1][1], MAZE[6][6] = RESET, GOAL
"""Every episode starts in the same corner; uniform start positions would cover the maze by themselves."""


def main(argv: list[str] | None = None) -> tuple[int, int]:
    """:return: visited bins of the maze, of the exploring agent and of uniform actions"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    explored, uniform = (count_bins(arguments.steps, arguments.seed, is_exploring) for is_exploring in (True, False))
    print(f"Visited bins in {arguments.steps:,} steps: {explored}; with uniform actions: {uniform}.")
    return explored, uniform


def count_bins(steps: int, seed: int, is_exploring: bool) -> int:
    """:return: visited bins"""
    counter = BinCounter(gym.make("PointMaze_Medium-v3", maze_map=MAZE, continuing_task=False, max_episode_steps=300))
    # Without the desired goal, which is random: it would be novel whatever the agent does.
    filtered = gym.wrappers.FilterObservation(counter, ["observation", "achieved_goal"])
    env = sb3_exdm.ScoreRewardWrapper(filtered, seed=seed)
    # SAC samples uniform actions until learning_starts. A high entropy and a single critic keep it exploring.
    learning_starts = min(1000, steps // 2) if is_exploring else steps
    settings = {"target_entropy": 0.5, "learning_rate": 5e-4, "policy_kwargs": {"n_critics": 1}, "train_freq": 4}
    model = SAC("MultiInputPolicy", env, learning_starts=learning_starts, seed=seed, device="cpu", **settings)
    model.learn(steps)
    return counter.coverage.value


class BinCounter(gym.Wrapper):
    """Count the visited bins of positions, each a fifth of a cell wide."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.coverage = sb3_exdm.BinCoverage(bin_width=0.2)

    def step(self, action):
        observation, *rest = self.env.step(action)
        self.coverage.update(observation["achieved_goal"])
        return observation, *rest


if __name__ == "__main__":
    main()
