"""
Explore any Gymnasium environment with any algorithm of Stable-Baselines3: PPO with a wrapper and without the task reward.

MountainCarContinuous penalizes every action, so that an agent trained on its reward alone learns to stand still.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: rightmost position of two episodes; the goal is at 0.45"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    env = sb3_exdm.ScoreRewardWrapper(gym.make("MountainCarContinuous-v0"), seed=arguments.seed)
    model = PPO("MlpPolicy", env, n_steps=min(2048, arguments.steps), use_sde=True, seed=arguments.seed, device="cpu")
    model.learn(arguments.steps)

    env.frozen = True  # compute intrinsic rewards, but do not fit the model anymore
    positions = []
    for episode in range(2):
        obs, _ = env.reset(seed=episode)
        done = False
        while not done:
            action, _ = model.predict(obs)
            obs, _, terminated, truncated, info = env.step(action)
            positions.append(obs[0])
            done = terminated or truncated
    print(f"Positions from {np.min(positions):.2f} to {np.max(positions):.2f}; the goal is at 0.45.")
    print(f"Last step: intrinsic reward {info['intrinsic_reward']:.2f}, task reward {info['extrinsic_reward']:.2f}.")
    return float(np.max(positions))


if __name__ == "__main__":
    main()
