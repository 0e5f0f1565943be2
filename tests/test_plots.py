"""Figures, and the records of run folders that they show."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sb3_exdm.common.serialization import FORMAT_VERSION, ArtifactError
from sb3_exdm.envs import MazeLayout
from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots import curves, maps, plot_coverage, plot_learning_curve, plot_reward, plot_runs, plot_visits
from sb3_exdm.plots.style import COLORS
from sb3_exdm.runs.folder import RunFolder

TREE = MazeLayout.load("SquareTree")
STEPS = np.arange(1, 6) * 1000


def make_run(
    folder: Path,
    env_id: str = "Maze2d-SquareA-v0",
    reward: str = "score",
    seed: int = 0,
    coverage: list[float] | None = None,
    finished: bool = True,
    summary: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write the files of a run folder that plots read."""
    folder.mkdir(parents=True)
    settings = {"command": "pretrain", "env_id": env_id, "algo": "sac", "reward": reward, "seed": seed}
    (folder / "config.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **settings, **config}))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **(summary or {})}))
    coverage = [0.1, 0.2, 0.3, 0.4, 0.5] if coverage is None else coverage
    rows = [f"{1000 * (i + 1)},{i},{value}\n" for i, value in enumerate(coverage)]
    (folder / "progress.csv").write_text("timesteps,seconds,coverage\n" + "".join(rows))
    return folder


def pixels(path: Path) -> np.ndarray:
    """Read colors from 0 to 1, (height, width, 3)."""
    return matplotlib.image.imread(path)[..., :3]


def assert_picture(path: Path) -> None:
    picture = pixels(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 300
    assert picture.std() > 0.02, "the figure is blank"
    assert path.stat().st_size < 400_000
    assert [other.name for other in path.parent.iterdir() if other.name.startswith(".")] == [], "a temporary file is left"


# One run ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ceiling", [None, 0.786])
@pytest.mark.parametrize("n", [1, 5])
def test_coverage_picture(tmp_path, n, ceiling):
    path = plot_coverage(STEPS[:n], np.linspace(0, 0.7, 5)[:n], tmp_path / "new" / "c.png", ceiling=ceiling)
    assert path == tmp_path / "new" / "c.png"
    assert_picture(path)


def test_coverage_in_bins(tmp_path):
    assert_picture(plot_coverage(STEPS, STEPS / 10, tmp_path / "c.png", ylabel="visited bins", title="Pendulum-v1"))


def test_learning_curves(tmp_path):
    returns = np.random.default_rng(0).normal(size=(5, 4))
    assert_picture(plot_learning_curve(STEPS, returns, tmp_path / "r.png", title="Pendulum-v1"))
    assert_picture(plot_learning_curve(STEPS, returns, tmp_path / "s.png", success=[0.0, 0.2, 0.5, 0.9, 1.0]))
    with pytest.raises(ValueError, match="5 timesteps but 4 values"):
        plot_learning_curve(STEPS, returns[:4], tmp_path / "x.png")


@pytest.mark.parametrize(
    "steps, coverage, message",
    [
        ([], [], "timesteps must have shape"),
        ([1, 2], [0.1], "2 timesteps but 1 values"),
        ([1], [math.nan], "coverage must be finite"),
        ([[1]], [[1]], "timesteps must have shape"),
    ],
)
def test_coverage_refuses(tmp_path, steps, coverage, message):
    with pytest.raises(ValueError, match=message):
        plot_coverage(steps, coverage, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_visited_bins_are_those_of_the_coverage():
    positions = TREE.sample_starts(np.random.default_rng(0), 500)
    coverage = StateCoverage(TREE)
    coverage.update(positions)
    counts, x_edges, y_edges = maps._histogram(positions, TREE)
    assert np.array_equal(counts, coverage.visits)
    assert (x_edges[0], y_edges[0], x_edges[-1], y_edges[-1]) == TREE.bounding_box


def test_unvisited_places_are_white(tmp_path):
    layout = MazeLayout.load("SquareBottleneck")
    rng = np.random.default_rng(0)

    def share_of_white(high: float) -> float:
        path = plot_visits(rng.uniform(-0.5, high, (20_000, 2)), tmp_path / f"{high}.png", layout=layout)
        assert_picture(path)
        return float((pixels(path) == 1.0).all(axis=-1).mean())

    maze_share = share_of_white(0.0) - share_of_white(9.5)
    assert maze_share > 0.4  # one bin of 361 is colored, then all


@pytest.mark.slow
@pytest.mark.parametrize("positions", [np.random.default_rng(0).normal(size=(100, 2)), np.zeros((1, 2)), [[1, 5], [1, 7]]])
def test_visits_without_a_maze(tmp_path, positions):
    assert_picture(plot_visits(positions, tmp_path / "v.png", labels=("angle", "speed")))


@pytest.mark.slow
def test_a_goal_is_drawn_only_if_it_is_given(tmp_path):
    starts = TREE.sample_starts(np.random.default_rng(0), 9)

    def count(color: str, **kwargs: Any) -> int:
        path = plot_reward(lambda xy: xy[:, 0], tmp_path / "r.png", layout=TREE, positions=starts, **kwargs)
        return int((np.abs(pixels(path) - to_rgb(color)).max(axis=-1) < 0.02).sum())

    start, goal = COLORS[1], COLORS[2]
    assert count(start) > 20 and count(goal) == 0
    assert count(start, goal=TREE.goal_cells[-1]) > 20 and count(goal, goal=TREE.goal_cells[-1]) > 20


@pytest.mark.parametrize("positions", [np.zeros((0, 2)), np.zeros((3, 1)), np.zeros(2), [[0.0, math.inf]]])
def test_visits_refuse(tmp_path, positions):
    with pytest.raises(ValueError, match="positions must"):
        plot_visits(positions, tmp_path / "v.png", layout=TREE)
    assert list(tmp_path.iterdir()) == []


def test_reward_is_computed_in_all_of_the_free_space_and_nowhere_else(tmp_path):
    batches = []

    def reward(positions: np.ndarray) -> np.ndarray:
        batches.append(positions)
        return positions.sum(axis=1)

    assert_picture(plot_reward(reward, tmp_path / "r.png", layout=TREE))
    (positions,) = batches
    assert TREE.contains(positions).all()
    cells, counts = np.unique(np.round(positions), axis=0, return_counts=True)
    assert {(int(i), int(j)) for i, j in cells} == set(TREE.cells)
    assert len(set(counts)) == 1 and counts[0] >= 100


def test_reward_at_positions(tmp_path):
    positions = np.random.default_rng(0).normal(size=(200, 2))
    assert_picture(plot_reward(lambda xy: xy[:, 0], tmp_path / "r.png", positions=positions, labels=("a", "b")))
    # The color scale of a constant reward has no range.
    assert_picture(plot_reward(lambda xy: np.zeros(len(xy)), tmp_path / "z.png", positions=positions))


@pytest.mark.parametrize(
    "reward, message",
    [
        (lambda xy: np.zeros((len(xy), 1)), "one number for each"),
        (lambda xy: np.full(len(xy), math.nan), "finite"),
    ],
)
def test_reward_refuses(tmp_path, reward, message):
    with pytest.raises(ValueError, match=message):
        plot_reward(reward, tmp_path / "r.png", layout=TREE)
    assert list(tmp_path.iterdir()) == []


def test_reward_needs_positions(tmp_path):
    with pytest.raises(ValueError, match="needs a layout, or positions"):
        plot_reward(lambda xy: xy[:, 0], tmp_path / "r.png")


@pytest.mark.parametrize(
    "name, message", [("c.txt", "is not the name of an image file"), ("c", "is not the name"), ("", "is a folder")]
)
def test_paths_that_are_no_image_files(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        plot_coverage([1], [1], tmp_path / name)


@pytest.mark.parametrize("ending, start", [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_other_formats(tmp_path, ending, start):
    assert plot_coverage([1], [1], tmp_path / f"c.{ending}").read_bytes().startswith(start)


# Run folders --------------------------------------------------------------------------------------------------------------


def test_record(tmp_path):
    record = RunFolder(make_run(tmp_path / "run", coverage=[0.1, 0.25])).record()
    assert record.config["env_id"] == "Maze2d-SquareA-v0"
    assert record.finished
    assert record.progress["timesteps"].tolist() == [1000, 2000]
    assert record.progress["coverage"].tolist() == [0.1, 0.25]


def test_a_run_that_was_killed_while_writing_loses_only_half_a_row(tmp_path):
    run = make_run(tmp_path / "run", coverage=[0.1, 0.25], finished=False)
    with (run / "progress.csv").open("a") as file:
        file.write("3000,2.1,0.")
    record = RunFolder(run).record()
    assert not record.finished
    assert record.progress["coverage"].tolist() == [0.1, 0.25]


def spoil_config(run: Path) -> None:
    (run / "config.json").write_text('{"env_id": "Maze')


def forget_settings(run: Path) -> None:
    (run / "config.json").write_text("{}")


def spoil_summary(run: Path) -> None:
    (run / "summary.json").write_text("[]")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda run: (run / "config.json").unlink(), "is not a run folder: it has no config.json"),
        (spoil_config, "config.json is not valid JSON"),
        (forget_settings, "names no command"),
        (spoil_summary, "summary.json holds list"),
        (lambda run: (run / "progress.csv").unlink(), "stopped before any progress"),
        (lambda run: (run / "progress.csv").write_text(""), "has no rows"),
        (lambda run: (run / "progress.csv").write_text("timesteps,coverage\n"), "has no rows"),
        (lambda run: (run / "progress.csv").write_text("a,b\n1,2\n"), "has no column 'timesteps'"),
        (lambda run: (run / "progress.csv").write_text("timesteps,coverage\n1,2\n2\n"), "a row that is not 2 numbers"),
        (lambda run: (run / "progress.csv").write_text("timesteps,coverage\n1,x\n"), "a row that is not 2 numbers"),
        (lambda run: (run / "progress.csv").write_text("timesteps,coverage\n2,0\n1,0\n"), "do not increase"),
        (lambda run: (run / "progress.csv").write_bytes(b"\xff\xfe\x00"), "is not text"),
    ],
)
def test_damaged_run_folders(tmp_path, spoil, message):
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(ArtifactError, match=message) as caught:
        plot_runs([run], tmp_path / "c.png")
    assert str(run) in str(caught.value), "the message does not say which run"
    assert not (tmp_path / "c.png").exists()


def test_paths_that_are_no_run_folders(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        plot_runs([tmp_path / "nowhere"], tmp_path / "c.png")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not a run folder"):
        plot_runs([tmp_path / "file"], tmp_path / "c.png")
    with pytest.raises(ArtifactError, match="written by a newer sb3-exdm"):
        plot_runs([make_run(tmp_path / "newer", format_version=FORMAT_VERSION + 1)], tmp_path / "c.png")


# Several runs -------------------------------------------------------------------------------------------------------------


def test_runs_picture(tmp_path):
    runs = [
        make_run(tmp_path / f"{env_id}-{reward}-{seed}", env_id, reward, seed)
        for env_id in ("Maze2d-SquareA-v0", "Maze2d-SquareD-v0", "Pendulum-v1")
        for reward in ("score", "zero")
        for seed in range(2)
    ]
    assert plot_runs(runs, tmp_path / "c.png") == tmp_path / "c.png"
    assert_picture(tmp_path / "c.png")
    assert_picture(plot_runs(runs[:1], tmp_path / "seconds.png", metric="seconds", group_by=["algo"]))
    assert_picture(plot_runs(runs[:4], tmp_path / "over_seconds.png", x="seconds"))
    panel = curves._panels([RunFolder(runs[0]).record()], "seconds", "coverage", ["reward"])["Maze2d-SquareA-v0"]
    np.testing.assert_array_equal(panel[0].curves[0][0], RunFolder(runs[0]).record().progress["seconds"])
    with pytest.raises(ValueError, match="timesteps"):
        plot_runs(runs[:1], tmp_path / "d.png", x="steps")


def test_runs_that_differ_in_seed_are_one_line(tmp_path):
    records = [
        RunFolder(make_run(tmp_path / "0", seed=0, coverage=[0.1, 0.3])).record(),
        RunFolder(make_run(tmp_path / "1", seed=1, coverage=[0.2, 0.5, 0.9])).record(),
        RunFolder(make_run(tmp_path / "2", reward="zero", coverage=[0.1])).record(),
    ]
    panels = curves._panels(records, "timesteps", "coverage", ["reward", "algo"])
    assert list(panels) == ["Maze2d-SquareA-v0"]
    score, zero = panels["Maze2d-SquareA-v0"]
    # All have the same algorithm, so the legend omits it.
    assert (score.label, zero.label) == ("score", "zero")
    steps, values = score.on_common_steps()
    assert steps.tolist() == [1000, 2000]
    assert values.mean(axis=0).tolist() == pytest.approx([0.15, 0.4])


@pytest.mark.parametrize("n_methods, bands", [(4, 4), (9, 0)])
def test_many_methods_have_ranges_at_the_end_instead_of_bands(tmp_path, monkeypatch, n_methods, bands):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    runs = [
        make_run(tmp_path / f"{method}-{seed}", reward=f"r{method}", seed=seed, coverage=[0.0, 0.05 * method + 0.02 * seed])
        for method in range(n_methods)
        for seed in range(3)
    ]
    plot_runs(runs, tmp_path / "c.png")
    (figure,) = drawn
    (axes,) = figure.axes
    kinds = [type(collection).__name__ for collection in axes.collections]
    assert kinds.count("FillBetweenPolyCollection") == bands
    bars = [collection for collection in axes.collections if type(collection).__name__ == "LineCollection"]
    assert len(bars) == n_methods - bands
    for place, bar in enumerate(bars):  # from the best to the worst, beyond the last step
        (segment,) = bar.get_segments()
        method = n_methods - 1 - place
        np.testing.assert_allclose(segment[:, 1], [0.05 * method, 0.05 * method + 0.04])
        assert (segment[:, 0] > 2000).all()
    assert ("bar at the end" in figure.legends[0].get_title().get_text()) == (n_methods == 9)


def test_the_color_scale_of_visits_names_its_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(maps, "save_figure", lambda figure, path: drawn.append(figure))
    corner = np.tile(TREE.start_cells[0], (5000, 1))
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 2)) + TREE.start_cells[0]
    plot_visits(np.concatenate([corner, spread]), tmp_path / "v.png", layout=TREE)
    figure = drawn[0]
    figure.draw_without_rendering()
    (bar,) = figure.axes[0].child_axes
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels[:2] == ["1", "2"] and labels[-1].endswith(" or more") and bar.get_ylabel() == "visits per bin (white: none)"


def test_unequal_steps_are_interpolated():
    line = curves._Line(
        "score", True, [(np.array([0.0, 4.0]), np.array([0.0, 4.0])), (np.array([1.0, 3.0]), np.array([0.0, 2.0]))]
    )
    steps, values = line.on_common_steps()
    assert steps.tolist() == [1, 3]
    assert values.tolist() == [[1, 3], [0, 2]]


def test_an_unfinished_run_is_a_line_of_its_own(tmp_path):
    runs = [make_run(tmp_path / "0", seed=0), make_run(tmp_path / "1", seed=1, coverage=[0.1], finished=False)]
    records = [RunFolder(run).record() for run in runs]
    finished, unfinished = curves._panels(records, "timesteps", "coverage", ["reward"])["Maze2d-SquareA-v0"]
    assert (finished.label, unfinished.label) == ("score", "score, seed 1 (unfinished)")
    assert_picture(plot_runs(runs, tmp_path / "c.png"))


def test_finetuned_runs_are_labeled_in_words(tmp_path):
    settings = {"command": "finetune", "policy": "diffusion", "operator": "exdm"}
    runs = [
        make_run(tmp_path / "0", **settings, pretrained="runs/p", reuse_data=True),
        make_run(tmp_path / "1", **settings, pretrained=None, reuse_data=False),
    ]
    records = [RunFolder(run).record() for run in runs]
    (lines,) = curves._panels(records, "timesteps", "coverage", ["policy", "pretrained", "reuse_data"]).values()
    assert [line.label for line in lines] == ["pre-trained, reused data", "from scratch, new data"]
    with pytest.raises(ValueError, match="plot them separately"):
        plot_runs([*runs, make_run(tmp_path / "2")], tmp_path / "c.png")


@pytest.mark.slow
def test_runs_with_different_bins_are_refused(tmp_path):
    def run(name: str, env_id: str = "Pendulum-v1", **kwargs: Any) -> Path:
        return make_run(tmp_path / name, env_id, coverage=[10, 20], **{"coverage_dims": [0, 1], **kwargs})

    wide = run("wide", summary={"bin_width": [0.5, 0.5]}, bin_width=None)
    narrow = run("narrow", summary={"bin_width": [0.1, 0.1]}, bin_width=None)
    with pytest.raises(ValueError, match=r"different widths.*wide: \[0\.5, 0\.5\].*narrow: \[0\.1, 0\.1\].*--bin-width"):
        plot_runs([wide, narrow], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
    # An unfinished run only has the width that was set.
    with pytest.raises(ValueError, match="different widths"):
        plot_runs([wide, run("unfinished", finished=False, bin_width=0.1)], tmp_path / "c.png")
    with pytest.raises(ValueError, match="dimensions"):
        plot_runs([wide, run("others", coverage_dims=[0, 2], summary={"bin_width": [0.5, 0.5]})], tmp_path / "c.png")
    equal = [wide, run("as wide", finished=False, bin_width=0.5)]
    assert_picture(plot_runs([*equal, run("another env", "Acrobot-v1", bin_width=2.0)], tmp_path / "c.png"))
    assert_picture(plot_runs([wide, narrow], tmp_path / "seconds.png", metric="seconds"))
    mazes = [make_run(tmp_path / f"maze{width}", bin_width=width) for width in (0.1, 0.2)]  # the bins of mazes are fixed
    assert_picture(plot_runs(mazes, tmp_path / "mazes.png"))


def test_the_axis_says_if_bin_widths_are_unknown(tmp_path):
    known = [make_run(tmp_path / name, "Pendulum-v1", bin_width=0.5) for name in ("a", "b")]
    old = make_run(tmp_path / "old", "Pendulum-v1")
    for runs, is_marked in ((known, False), ([*known, old], True), ([old], False)):
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            text = plot_runs(runs, tmp_path / "c.svg").read_text()
        assert "visited bins" in text
        assert ("widths may differ" in text) == is_marked


def test_runs_refuse(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="name at least one run folder"):
        plot_runs([], tmp_path / "c.png")
    with pytest.raises(ValueError, match="has no 'loss'; it has timesteps, seconds, coverage"):
        plot_runs([run], tmp_path / "c.png", metric="loss")
    with pytest.raises(ValueError, match="has no 'color'; it has"):
        plot_runs([run], tmp_path / "c.png", group_by=["color"])
    (run / "progress.csv").write_text("timesteps,coverage\n1,\n2,\n")
    with pytest.raises(ValueError, match="has no values of 'coverage'"):
        plot_runs([run], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
