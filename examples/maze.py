"""
Explore a maze without a reward and look at the pictures: coverage over time, visits, and what is still novel.
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
    print(f"Coverage {run.summary['coverage']:.3f} after {run.summary['seconds']:.0f} s.")

    # Everything can be read back, without executing anything that is stored.
    folder = sb3_exdm.RunFolder(arguments.out)
    novelty = folder.load_reward(device="cpu")
    start, visited = np.zeros((1, 2)), folder.transitions()["next_observations"]
    most_novel = visited[novelty.reward(visited).argmax()]
    print(f"Novelty {novelty.reward(start)[0]:.2f} at the start, {novelty.reward(most_novel[None])[0]:.2f} at {most_novel}.")
    print("Pictures:", *sorted(map(str, arguments.out.glob("*.png"))))
    return run.summary["coverage"]


if __name__ == "__main__":
    main()
