"""
Explore a maze without a reward, then fine-tune to its farthest cell: the diffusion policy and the Gaussian policy, each with
and without the explored transitions in the replay buffer.
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs

GOAL = {"goal_cell": "farthest", "goal_radius": 0.5, "terminate_on_success": True}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: final success rate of each run"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Maze2d-SquareTree-v0")
    parser.add_argument("--pretrain-steps", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-finetune"))
    arguments = parser.parse_args(argv)

    out, seed = arguments.out, arguments.seed
    sb3_exdm.pretrain(arguments.env, arguments.pretrain_steps, seed=seed, out=out / "explored", overwrite=True)
    success_rates = {}
    for policy in ("diffusion", "gaussian"):
        for reuse_data in (False, True):
            name = f"{policy}-{'reuse' if reuse_data else 'fresh'}"
            run = sb3_exdm.finetune(
                arguments.env,
                arguments.steps,
                pretrained=out / "explored",
                policy=policy,
                reuse_data=reuse_data,
                seed=seed,
                env_kwargs=GOAL,
                out=out / name,
                overwrite=True,
            )
            success_rates[name] = run.summary["success_rate"]
            print(f"{name}: success rate {success_rates[name]:.2f}")
    print("Picture:", plot_runs([out / name for name in success_rates], out / "success.png", metric="success_rate"))
    return success_rates


if __name__ == "__main__":
    main()
