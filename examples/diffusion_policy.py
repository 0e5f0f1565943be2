"""
Train SAC with a diffusion policy: pre-trained without a reward, then fine-tuned to a goal through a callback.
"""

import argparse

from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_exdm
from sb3_exdm.envs import Maze2dSB3VecEnv


def main(argv: list[str] | None = None) -> float:
    """:return: success rate"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrain-steps", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--operator", default="select", choices=sb3_exdm.OPERATORS)
    arguments = parser.parse_args(argv)

    sb3_exdm.pretrain("Maze2d-SquareA-v0", arguments.pretrain_steps, out="runs/example-explored", overwrite=True)

    env = Maze2dSB3VecEnv("SquareA", 8, seed=0, goal_cell="farthest", terminate_on_success=True)
    settings = {"learning_rate": 1e-3, "gamma": 0.98, "tau": 0.02, "learning_starts": 1000, "gradient_steps": 2}
    model = SAC("DiffusionPolicy", env, policy_kwargs={"pretrained": "runs/example-explored"}, seed=0, **settings)
    model.learn(arguments.steps, callback=sb3_exdm.DiffusionFinetuneCallback(arguments.operator))
    model.save("runs/example-diffusion-policy")

    # The task reward is 1 at the goal, where the episode ends: the mean return is the success rate.
    success_rate, _ = evaluate_policy(SAC.load("runs/example-diffusion-policy"), env, n_eval_episodes=50)
    print(f"Success rate {success_rate:.2f} after {arguments.steps:,} steps.")
    return float(success_rate)


if __name__ == "__main__":
    main()
