"""
Solve MountainCarContinuous with SAC, whose replay buffer adds an intrinsic reward to the task reward.

Only the goal is rewarded and every action costs energy, so SAC alone learns to stand still (return 0).
"""

import argparse

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: mean return of ten evaluation episodes; the task counts as solved above 90"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    env = make_vec_env("MountainCarContinuous-v0", n_envs=4)
    model = SAC(
        "MlpPolicy",
        env,
        gradient_steps=2,
        policy_kwargs=dict(net_arch=[64, 64]),
        replay_buffer_class=sb3_exdm.ScoreRewardReplayBuffer,
        replay_buffer_kwargs=dict(extrinsic_coef=1, intrinsic_coef=0.1),
        seed=arguments.seed,
    )
    model.learn(arguments.steps)
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"Mean return {mean_return:.1f} after {arguments.steps:,} steps.")
    return float(mean_return)


if __name__ == "__main__":
    main()
