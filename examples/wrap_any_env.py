"""
Explore any Gymnasium environment with PPO: one wrapper, no reward.

MountainCarContinuous is hard to explore because it punishes effort: an agent that is paid by the task learns to stand still.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: the rightmost position that the agent has reached; the goal is at 0.45"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    env = sb3_exdm.ScoreRewardWrapper(gym.make("MountainCarContinuous-v0"), seed=arguments.seed)
    model = PPO("MlpPolicy", env, n_steps=min(2048, arguments.steps), use_sde=True, seed=arguments.seed, device="cpu")
    model.learn(arguments.steps)

    env.frozen = True  # novelty is still measured, but no longer learned
    positions = []
    for episode in range(5):
        obs, _ = env.reset(seed=episode)
        done = False
        while not done:
            action, _ = model.predict(obs)
            obs, _, terminated, truncated, info = env.step(action)
            positions.append(obs[0])
            done = terminated or truncated
    print(f"Reached positions from {np.min(positions):.2f} to {np.max(positions):.2f}; the goal is at 0.45.")
    print(f"Last step: intrinsic reward {info['intrinsic_reward']:.2f}, task reward {info['extrinsic_reward']:.2f}.")
    return float(np.max(positions))


if __name__ == "__main__":
    main()
