"""
Explore with SAC and a replay buffer that computes rewards when it is sampled, so that none of them is ever stale.
"""

import argparse

import numpy as np
from stable_baselines3 import SAC

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: share of the pendulum's angles and speeds that was visited"""
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

    visited = model.replay_buffer.next_observations[: model.replay_buffer.size(), 0]
    angle, speed = np.arctan2(visited[:, 1], visited[:, 0]), visited[:, 2]
    bins, _, _ = np.histogram2d(angle, speed, bins=20, range=[[-np.pi, np.pi], [-8, 8]])
    share = float((bins > 0).mean())
    print(f"Visited {share:.0%} of 400 combinations of angle and speed.")

    novelty = model.replay_buffer.reward_model.reward(visited)
    print(f"The most novel state so far: angle {angle[novelty.argmax()]:.2f}, speed {speed[novelty.argmax()]:.2f}.")
    return share


if __name__ == "__main__":
    main()
