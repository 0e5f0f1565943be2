"""
Explore with SAC and a replay buffer that recomputes the intrinsic rewards of every sampled batch, so that none is stale.
"""

import argparse

import numpy as np
from stable_baselines3 import SAC

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: visited share of 400 bins of the pendulum's angle and angular velocity"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        replay_buffer_class=sb3_exdm.ScoreRewardReplayBuffer,
        replay_buffer_kwargs=dict(reward="score", reward_kwargs=dict(seed=arguments.seed)),
        buffer_size=arguments.steps,
        train_freq=4,
        seed=arguments.seed,
        device="cpu",
    )
    model.learn(arguments.steps)

    states = model.replay_buffer.next_observations[: model.replay_buffer.size(), 0]
    angle, velocity = np.arctan2(states[:, 1], states[:, 0]), states[:, 2]
    visits, _, _ = np.histogram2d(angle, velocity, bins=20, range=[[-np.pi, np.pi], [-8, 8]])
    coverage = float((visits > 0).mean())
    print(f"Visited {coverage:.0%} of 400 bins of angle and angular velocity.")

    rewards = model.replay_buffer.reward_model.reward(states)
    print(f"Largest intrinsic reward: angle {angle[rewards.argmax()]:.2f}, velocity {velocity[rewards.argmax()]:.2f}.")
    return coverage


if __name__ == "__main__":
    main()
