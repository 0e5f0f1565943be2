"""
Explore a maze without a reward, or read a run that did, and draw an animation of the visited states.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

import sb3_exdm

DPI = 100


def draw(layout: sb3_exdm.envs.MazeLayout, positions: np.ndarray) -> Image.Image:
    """Draw the visits of each bin so far, and the state coverage."""
    x_min, y_min, x_max, y_max = layout.bounding_box
    per_cell = round(1 / layout.coverage_bin)
    edges = [
        np.linspace(low, high, n * per_cell + 1)
        for low, high, n in zip((x_min, y_min), (x_max, y_max), layout.shape, strict=True)
    ]
    counts, *_ = np.histogram2d(*positions.T, bins=edges)
    coverage = sb3_exdm.state_coverage(positions, layout.name)

    figure = Figure(figsize=(4.2, 4.55), dpi=DPI)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.91))
    axes.pcolormesh(*edges, np.ma.masked_equal(counts, 0).T, norm=LogNorm(1, 100), cmap="viridis")
    axes.add_collection(LineCollection(list(layout.wall_array.reshape(-1, 2, 2)), colors="#2E3440", linewidths=2))
    axes.set(xlim=(x_min - 0.1, x_max + 0.1), ylim=(y_min - 0.1, y_max + 0.1), aspect="equal")
    axes.axis("off")
    figure.text(0.03, 0.945, f"{len(positions):,} steps without a reward", fontsize=10)
    figure.text(0.97, 0.945, f"coverage {coverage:.2f}", fontsize=10, ha="right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def main(argv: list[str] | None = None) -> float:
    """:return: state coverage at the end"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder of exdm pretrain in a maze (default: explore SquareLarge)")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("exploration.gif"))
    arguments = parser.parse_args(argv)

    run = arguments.run or Path("runs/example-animation")
    if arguments.run is None:
        sb3_exdm.pretrain("Maze2d-SquareLarge-v0", arguments.steps, policy_steps=0, out=run, overwrite=True)
    folder = sb3_exdm.RunFolder(run)
    positions = folder.transitions()["next_observations"]
    layout = sb3_exdm.envs.MazeLayout.load(folder.config["env_id"])

    # Exploration is fastest at the start, so the first frames are closer together.
    ends = (np.linspace(0, 1, arguments.frames + 1)[1:] ** 1.5 * len(positions)).round().astype(int)
    frames = [draw(layout, positions[:end]) for end in ends]
    durations = [120] * (len(frames) - 1) + [2500]
    frames[0].save(arguments.out, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    print(f"State coverage {folder.summary['coverage']:.3f}; {arguments.out} has {arguments.out.stat().st_size / 1e6:.2f} MB.")
    return folder.summary["coverage"]


if __name__ == "__main__":
    main()
