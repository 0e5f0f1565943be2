"""
Explore a maze without a reward, then go to its furthest cell: the diffusion policy beside the Gaussian that explored, both
with the explored transitions and without.
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs

GOAL = {"goal_cell": "farthest", "goal_radius": 0.5, "terminate_on_success": True}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: success rates at the end, by the name of the run"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Maze2d-SquareTree-v0")
    parser.add_argument("--pretrain-steps", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-finetune"))
    arguments = parser.parse_args(argv)

    out, seed = arguments.out, arguments.seed
    explored = sb3_exdm.pretrain(arguments.env, arguments.pretrain_steps, seed=seed, out=out / "explored", overwrite=True)
    rates = {}
    for policy in ("diffusion", "gaussian"):
        for reuse_data in (False, True):
            name = f"{policy}-{'reuse' if reuse_data else 'fresh'}"
            run = sb3_exdm.finetuning(
                pretrained=explored.path,
                total_timesteps=arguments.steps,
                policy=policy,
                reuse_data=reuse_data,
                seed=seed,
                env_kwargs=GOAL,
                out=out / name,
                overwrite=True,
            )
            rates[name] = run.summary["success_rate"]
            print(f"{name}: success rate {rates[name]:.2f}")
    print("Picture:", plot_runs([out / name for name in rates], out / "success.png", metric="success_rate"))
    return rates


if __name__ == "__main__":
    main()
