"""
Explore a maze without a reward; draw the state coverage over time, the visited states and the intrinsic reward.
"""

import argparse
from pathlib import Path

import numpy as np

import sb3_exdm


def main(argv: list[str] | None = None) -> float:
    """:return: state coverage"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Maze2d-SquareBottleneck-v0")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-maze"))
    arguments = parser.parse_args(argv)

    run = sb3_exdm.pretrain(arguments.env, arguments.steps, seed=arguments.seed, out=arguments.out, overwrite=True)
    print(f"State coverage {run.summary['coverage']:.3f} after {run.summary['seconds']:.0f} s.")

    # A run folder loads without pickle.
    folder = sb3_exdm.RunFolder(arguments.out)
    reward_model = folder.load_reward(device="cpu")
    states = folder.transitions()["next_observations"]
    rewards = reward_model.reward(states)
    print(f"Intrinsic reward {reward_model.reward(np.zeros((1, 2)))[0]:.2f} at the start position;", end=" ")
    print(f"the largest is {rewards.max():.2f} at {states[rewards.argmax()]}.")
    print("Pictures:", *sorted(map(str, arguments.out.glob("*.png"))))
    return run.summary["coverage"]


if __name__ == "__main__":
    main()
