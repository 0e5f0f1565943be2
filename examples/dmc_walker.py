"""
Explore with the walker of dm_control without a reward, then fine-tune to one of its tasks: with the explored transitions in
the replay buffer, with new transitions only, and from scratch.

Needs the extras dmc and video: pip install "sb3-exdm[dmc,video]".
"""

import argparse
from pathlib import Path

import sb3_exdm
from sb3_exdm.plots import plot_runs


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: final normalized score of each run"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="URLB/walker-walk-v0", help="URLB/walker-{stand,walk,run,flip}-v0")
    parser.add_argument("--pretrain-steps", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-walker"))
    parser.add_argument("--no-video", action="store_true", help="for machines without OpenGL")
    arguments = parser.parse_args(argv)

    out, seed = arguments.out, arguments.seed
    # Any task of the walker will do: exploration never uses the task reward.
    sb3_exdm.pretrain(arguments.task, arguments.pretrain_steps, seed=seed, out=out / "explored", overwrite=True)
    scores = {}
    for name, settings in {
        "reuse": dict(pretrained=out / "explored", reuse_data=True),
        "fresh": dict(pretrained=out / "explored"),
        "scratch": dict(policy="gaussian"),
    }.items():
        settings |= dict(seed=seed, out=out / name, overwrite=True, video=not arguments.no_video)
        run = sb3_exdm.finetune(arguments.task, arguments.steps, **settings)
        scores[name] = run.summary["normalized_score"]
        print(f"{name}: return {run.summary['mean_reward']:.0f}, normalized score {scores[name]:.2f}")
    print("Picture:", plot_runs([out / name for name in scores], out / "returns.png", metric="mean_reward"))
    return scores


if __name__ == "__main__":
    main()
