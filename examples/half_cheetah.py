"""
Explore with Gymnasium's HalfCheetah without a task reward; compare the visited bins with those of an agent whose reward is 0.

Needs MuJoCo: pip install "sb3-exdm[dmc]".
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs

COVERAGE_DIMS = (0, 1, 8)
"""Height and pitch of the torso, and forward velocity."""


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: visited bins by reward"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-cheetah"))
    arguments = parser.parse_args(argv)

    out = arguments.out
    visited_bins = {}
    for reward in ("score", "zero"):
        run = sb3_exdm.pretrain(
            arguments.env,
            arguments.steps,
            reward=reward,
            coverage_dims=COVERAGE_DIMS,
            seed=arguments.seed,
            policy_steps=0,  # no diffusion policy
            out=out / reward,
            overwrite=True,
        )
        visited_bins[reward] = run.summary["coverage"]
        print(f"{reward}: {visited_bins[reward]:,.0f} visited bins")
    print("Picture:", plot_runs([out / reward for reward in visited_bins], out / "coverage.png"))
    return visited_bins


if __name__ == "__main__":
    main()
