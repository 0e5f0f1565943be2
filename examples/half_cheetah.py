"""
Explore with Gymnasium's own HalfCheetah without a reward, and count where it went, beside an agent that is paid for nothing.

Needs MuJoCo: pip install "sb3-exdm[dmc]".
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs

DIMS = (0, 1, 8)
"""Height and tilt of the torso, and its speed."""


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: visited bins, by the name of the reward"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-cheetah"))
    arguments = parser.parse_args(argv)

    visited = {}
    for reward in ("score", "zero"):
        run = sb3_exdm.pretrain(
            arguments.env,
            arguments.steps,
            reward=reward,
            coverage_dims=DIMS,
            seed=arguments.seed,
            policy_steps=0,  # no diffusion policy is needed here
            out=arguments.out / reward,
            overwrite=True,
        )
        visited[reward] = run.summary["coverage"]
        print(f"{reward}: {visited[reward]:,.0f} visited bins")
    print("Picture:", plot_runs([arguments.out / reward for reward in visited], arguments.out / "coverage.png"))
    return visited


if __name__ == "__main__":
    main()
