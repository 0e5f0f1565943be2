"""
Explore with a body of dm_control without a reward, then adapt to one of its tasks: with the explored transitions as data, with
new ones only, and from scratch.

Needs the extras dmc, plots and video: pip install "sb3-exdm[all]".
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: normalized scores at the end, by the name of the run"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="URLB/walker-walk-v0", help="stand, walk, run and flip are the walker's")
    parser.add_argument("--pretrain-steps", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-walker"))
    parser.add_argument("--no-video", action="store_true", help="where there is no OpenGL")
    arguments = parser.parse_args(argv)

    out, seed = arguments.out, arguments.seed
    # The task does not matter here: exploring never sees its reward.
    explored = sb3_exdm.pretrain(arguments.task, arguments.pretrain_steps, seed=seed, out=out / "explored", overwrite=True)
    scores = {}
    for name, pretrained in (("explored-data", explored.path), ("pretrained", explored.path), ("scratch", None)):
        run = sb3_exdm.finetuning(
            arguments.task,
            arguments.steps,
            pretrained=pretrained,
            policy="gaussian" if pretrained is None else "diffusion",
            reuse_data=name == "explored-data",
            seed=seed,
            out=out / name,
            overwrite=True,
            video=not arguments.no_video,
        )
        scores[name] = run.summary["normalized_score"]
        print(f"{name}: return {run.summary['mean_reward']:.0f}, {scores[name]:.2f} of an expert's")
    print("Picture:", plot_runs([out / name for name in scores], out / "returns.png", metric="mean_reward"))
    return scores


if __name__ == "__main__":
    main()
