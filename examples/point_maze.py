"""
Explore gymnasium-robotics' PointMaze, whose observations are dictionaries, with SAC and one wrapper, beside uniform actions.

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
"""Episodes begin in a corner: where they begin anywhere, the maze is visited without going anywhere."""


def main(argv: list[str] | None = None) -> tuple[int, int]:
    """:return: visited bins of the maze, by exploring and by uniform actions"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    visited = []
    for is_exploring in (True, False):
        counter = CountBins(gym.make("PointMaze_Medium-v3", maze_map=MAZE, continuing_task=False, max_episode_steps=300))
        # Not the desired goal, which is drawn at random: it would be novel without the agent going anywhere.
        filtered = gym.wrappers.FilterObservation(counter, ["observation", "achieved_goal"])
        env = sb3_exdm.ScoreRewardWrapper(filtered, seed=arguments.seed)
        # Until learning starts, SAC acts uniformly.
        learning_starts = min(1000, arguments.steps // 2) if is_exploring else arguments.steps
        # One critic and more entropy than usual, as exdm pretrain has them: who settles stops exploring.
        settings = {"target_entropy": 0.5, "learning_rate": 5e-4, "policy_kwargs": {"n_critics": 1}, "train_freq": 4}
        model = SAC("MultiInputPolicy", env, learning_starts=learning_starts, seed=arguments.seed, device="cpu", **settings)
        model.learn(arguments.steps)
        visited.append(counter.coverage.value)
    print(f"Visited bins in {arguments.steps:,} steps: {visited[0]}; with uniform actions: {visited[1]}.")
    return visited[0], visited[1]


class CountBins(gym.Wrapper):
    """Counts the places that the point was at, in bins of a fifth of a cell."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.coverage = sb3_exdm.BinCoverage(bin_width=0.2)

    def step(self, action):
        observation, *rest = self.env.step(action)
        self.coverage.update(observation["achieved_goal"])
        return observation, *rest


if __name__ == "__main__":
    main()
