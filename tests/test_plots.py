"""The pictures, and what is read from run folders to draw them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_exdm.common.serialization import FORMAT_VERSION, ArtifactError
from sb3_exdm.envs import MazeLayout
from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots import curves, maps, plot_coverage, plot_reward, plot_runs, plot_visits, read_run

image = pytest.importorskip("matplotlib.image")

TREE = MazeLayout.load("SquareTree")
STEPS = np.arange(1, 6) * 1000


def make_run(
    folder: Path,
    env_id: str = "Maze2d-SquareA-v0",
    reward: str = "score",
    seed: int = 0,
    coverage: list[float] | None = None,
    finished: bool = True,
    version: int = FORMAT_VERSION,
) -> Path:
    """A run folder as far as plots look into it."""
    folder.mkdir(parents=True)
    config = {"format_version": version, "env_id": env_id, "algo": "sac", "reward": reward, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"format_version": version}))
    coverage = [0.1, 0.2, 0.3, 0.4, 0.5] if coverage is None else coverage
    rows = [f"{1000 * (i + 1)},{i},{value}\n" for i, value in enumerate(coverage)]
    (folder / "progress.csv").write_text("timesteps,seconds,coverage\n" + "".join(rows))
    return folder


def pixels(path: Path) -> np.ndarray:
    """Colors from 0 to 1, (height, width, 3)."""
    return image.imread(path)[..., :3]


def assert_picture(path: Path) -> None:
    picture = pixels(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 300
    assert picture.std() > 0.02, "the picture is blank"
    assert path.stat().st_size < 400_000
    assert [other.name for other in path.parent.iterdir() if other.name.startswith(".")] == [], "a temporary file is left"


# One run ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ceiling", [None, 0.786])
@pytest.mark.parametrize("n", [1, 5])
def test_coverage_picture(tmp_path, n, ceiling):
    path = plot_coverage(STEPS[:n], np.linspace(0, 0.7, 5)[:n], tmp_path / "new" / "c.png", ceiling=ceiling, label="a run")
    assert path == tmp_path / "new" / "c.png"
    assert_picture(path)


def test_coverage_counts_bins_too(tmp_path):
    assert_picture(plot_coverage(STEPS, STEPS / 10, tmp_path / "c.png", ylabel="visited bins", title="Pendulum-v1"))


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


@pytest.mark.parametrize("positions", [np.random.default_rng(0).normal(size=(100, 2)), np.zeros((1, 2)), [[1, 5], [1, 7]]])
def test_visits_without_a_maze(tmp_path, positions):
    assert_picture(plot_visits(positions, tmp_path / "v.png", labels=("angle", "speed")))


@pytest.mark.parametrize("positions", [np.zeros((0, 2)), np.zeros((3, 1)), np.zeros(2), [[0.0, math.inf]]])
def test_visits_refuse(tmp_path, positions):
    with pytest.raises(ValueError, match="positions must"):
        plot_visits(positions, tmp_path / "v.png", layout=TREE)
    assert list(tmp_path.iterdir()) == []


def test_reward_is_asked_for_all_of_the_free_space_and_nothing_else(tmp_path):
    asked = []

    def reward(places: np.ndarray) -> np.ndarray:
        asked.append(places)
        return places.sum(axis=1)

    assert_picture(plot_reward(reward, tmp_path / "r.png", layout=TREE))
    (places,) = asked
    assert TREE.contains(places).all()
    cells, counts = np.unique(np.round(places), axis=0, return_counts=True)
    assert {(int(i), int(j)) for i, j in cells} == set(TREE.cells)
    assert len(set(counts)) == 1 and counts[0] >= 100


def test_reward_at_positions(tmp_path):
    positions = np.random.default_rng(0).normal(size=(200, 2))
    assert_picture(plot_reward(lambda places: places[:, 0], tmp_path / "r.png", positions=positions, labels=("a", "b")))
    # A constant reward, such as zero, has no range of colors of its own.
    assert_picture(plot_reward(lambda places: np.zeros(len(places)), tmp_path / "z.png", positions=positions))


@pytest.mark.parametrize(
    "reward, message",
    [
        (lambda places: np.zeros((len(places), 1)), "one number for each"),
        (lambda places: np.full(len(places), math.nan), "finite"),
    ],
)
def test_reward_refuses(tmp_path, reward, message):
    with pytest.raises(ValueError, match=message):
        plot_reward(reward, tmp_path / "r.png", layout=TREE)
    assert list(tmp_path.iterdir()) == []


def test_reward_needs_places(tmp_path):
    with pytest.raises(ValueError, match="needs a layout, or positions"):
        plot_reward(lambda places: places[:, 0], tmp_path / "r.png")


@pytest.mark.parametrize(
    "name, message", [("c.txt", "does not end like a picture"), ("c", "does not end"), ("", "is a folder")]
)
def test_what_is_no_picture(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        plot_coverage([1], [1], tmp_path / name)


@pytest.mark.parametrize("ending, start", [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_other_formats(tmp_path, ending, start):
    assert plot_coverage([1], [1], tmp_path / f"c.{ending}").read_bytes().startswith(start)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda path: plot_coverage([1], [1], path),
        lambda path: plot_visits(np.zeros((1, 2)), path),
        lambda path: plot_reward(lambda places: places[:, 0], path, layout=TREE),
    ):
        with pytest.raises(ImportError, match=r"pip install 'sb3-exdm\[plots\]'"):
            draw(tmp_path / "c.png")


# Run folders --------------------------------------------------------------------------------------------------------------


def test_read_run(tmp_path):
    record = read_run(make_run(tmp_path / "run", coverage=[0.1, 0.25]))
    assert record.config["env_id"] == "Maze2d-SquareA-v0"
    assert record.finished
    assert record.progress["timesteps"].tolist() == [1000, 2000]
    assert record.progress["coverage"].tolist() == [0.1, 0.25]


def test_a_run_that_was_killed_while_writing_loses_only_half_a_row(tmp_path):
    run = make_run(tmp_path / "run", coverage=[0.1, 0.25], finished=False)
    with (run / "progress.csv").open("a") as file:
        file.write("3000,2.1,0.")
    record = read_run(run)
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
        (lambda run: (run / "config.json").unlink(), "is no run folder: it has no config.json"),
        (spoil_config, "config.json is not valid JSON"),
        (forget_settings, "does not say env_id, algo, reward, seed"),
        (spoil_summary, "summary.json holds list"),
        (lambda run: (run / "progress.csv").unlink(), "stopped before it wrote any progress"),
        (lambda run: (run / "progress.csv").write_text(""), "is empty"),
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


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not a folder"):
        read_run(tmp_path / "file")
    with pytest.raises(ArtifactError, match="written by a newer sb3-exdm"):
        read_run(make_run(tmp_path / "newer", version=FORMAT_VERSION + 1))


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


def test_runs_that_differ_in_seed_are_one_line(tmp_path):
    records = [
        read_run(make_run(tmp_path / "0", seed=0, coverage=[0.1, 0.3])),
        read_run(make_run(tmp_path / "1", seed=1, coverage=[0.2, 0.5, 0.9])),
        read_run(make_run(tmp_path / "2", reward="zero", coverage=[0.1])),
    ]
    panels = curves._panels(records, "coverage", ["reward", "algo"])
    assert list(panels) == ["Maze2d-SquareA-v0"]
    score, zero = panels["Maze2d-SquareA-v0"]
    # All have the same algorithm, so it is not worth a place in the legend.
    assert (score.label, zero.label) == ("score", "zero")
    steps, values = score.on_common_steps()
    assert steps.tolist() == [1000, 2000]
    assert values.mean(axis=0).tolist() == pytest.approx([0.15, 0.4])


def test_unequal_steps_are_interpolated():
    line = curves._Line(
        "score", True, [(np.array([0.0, 4.0]), np.array([0.0, 4.0])), (np.array([1.0, 3.0]), np.array([0.0, 2.0]))]
    )
    steps, values = line.on_common_steps()
    assert steps.tolist() == [1, 3]
    assert values.tolist() == [[1, 3], [0, 2]]


def test_an_unfinished_run_is_a_line_of_its_own(tmp_path):
    runs = [make_run(tmp_path / "0", seed=0), make_run(tmp_path / "1", seed=1, coverage=[0.1], finished=False)]
    finished, unfinished = curves._panels([read_run(run) for run in runs], "coverage", ["reward"])["Maze2d-SquareA-v0"]
    assert (finished.label, unfinished.label) == ("score", "score, seed 1 (unfinished)")
    assert_picture(plot_runs(runs, tmp_path / "c.png"))


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
