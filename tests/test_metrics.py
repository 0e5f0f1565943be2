"""State coverage against a plain count, its ceilings, the coverage of random agents; bin coverage."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from sb3_exdm.envs import MAZE_NAMES, MazeLayout
from sb3_exdm.metrics import BinCoverage, StateCoverage, state_coverage

all_mazes = pytest.mark.parametrize("name", MAZE_NAMES)


def points_in_box(layout: MazeLayout, n: int, seed: int = 0) -> np.ndarray:
    x_min, y_min, x_max, y_max = layout.bounding_box
    return np.random.default_rng(seed).uniform((x_min, y_min), (x_max, y_max), (n, 2))


class TestStateCoverage:
    @all_mazes
    def test_against_a_plain_count(self, name):
        layout = MazeLayout.load(name)
        points = points_in_box(layout, 3000)
        x_min, y_min, x_max, y_max = layout.bounding_box
        visits: dict[tuple[int, int], int] = {}
        for x, y in points.tolist():
            if any(abs(x - i) < 0.5 and abs(y - j) < 0.5 for i, j in layout.cells):
                bin_ = int((x - x_min) / layout.coverage_bin), int((y - y_min) / layout.coverage_bin)
                visits[bin_] = visits.get(bin_, 0) + 1
        box_area = (x_max - x_min) * (y_max - y_min)
        n_bins = round(box_area / layout.coverage_bin**2)

        coverage = StateCoverage(layout)
        for batch in np.array_split(points, 7):
            coverage.update(batch)
        assert coverage.value == pytest.approx(len(visits) / n_bins / (layout.enclosed_area / box_area))
        assert coverage.value == state_coverage(points, name)
        assert {tuple(bin_) for bin_ in np.argwhere(coverage.visited).tolist()} == set(visits)
        assert all(coverage.visits[bin_] == count for bin_, count in visits.items())
        assert coverage.visits.sum() == sum(visits.values())
        assert coverage.of_ceiling == pytest.approx(coverage.value / coverage.ceiling)

    @all_mazes
    def test_ceiling_is_the_coverage_of_all_states(self, name):
        layout = MazeLayout.load(name)
        coverage = StateCoverage(f"Maze2d-{name}-v0")
        assert coverage.ceiling == pytest.approx(22 / 28 if name == "SquareD" else 1.0)
        width = layout.coverage_bin
        x_min, y_min, x_max, y_max = layout.bounding_box
        x, y = np.meshgrid(np.arange(x_min + width / 2, x_max, width), np.arange(y_min + width / 2, y_max, width))
        coverage.update(np.stack([x.ravel(), y.ravel()], axis=1))
        assert coverage.value == coverage.ceiling
        assert coverage.of_ceiling == 1.0

    def test_positions_on_walls_belong_to_the_bin_inside(self):
        coverage = StateCoverage("SquareA")  # bins of 0.05 over [-0.5, 4.5] x [-4.5, 0.5]
        for point, bin_ in [
            ((-0.5, -4.5), (0, 0)),  # the corners of the box
            ((4.5, 0.5), (99, 99)),
            ((4.5, -4.5), (99, 0)),
            ((-0.5, 0.5), (0, 99)),
            ((0.5, 0.0), (19, 90)),  # the wall right of the start, with no cell behind it
            ((1.5, -1.0), (40, 70)),  # the left wall of another corridor: its own bin is the inner one
            ((1.0, -2.5), (30, 40)),
            ((1.0, -1.5), (30, 59)),
            ((0.5, 0.5), (19, 99)),  # where the box's rim meets that wall
        ]:
            coverage.reset()
            coverage.update(np.array(point))
            assert np.argwhere(coverage.visited).tolist() == [list(bin_)], point

    def test_positions_outside_are_ignored(self):
        coverage = StateCoverage("SquareA")
        outside = [(1.0, 0.0), (-0.6, 0.0), (4.6, 0.0), (0.0, 0.6), (0.0, -4.6), (1e300, -1e300), (1.0, 0.5), (0.55, -1.0)]
        coverage.update(np.array(outside))
        assert coverage.value == 0.0
        assert coverage.visits.sum() == 0

    def test_reset_and_copies(self):
        coverage = StateCoverage("SquareBottleneck")
        coverage.update(np.zeros((1, 2)))
        assert coverage.visits.shape == (100, 100)
        assert coverage.value == pytest.approx(1 / 10_000)
        coverage.visits[:] = 7
        assert coverage.visits.sum() == 1
        coverage.reset()
        assert coverage.value == 0.0
        coverage.update(np.zeros((0, 2)))
        assert coverage.value == 0.0
        assert repr(coverage) == "StateCoverage('SquareBottleneck', value=0.000)"

    @pytest.mark.parametrize("positions", [np.zeros(3), np.zeros((4, 3)), np.zeros((2, 2, 2)), 0.0])
    def test_bad_shapes(self, positions):
        with pytest.raises(ValueError, match="shape"):
            StateCoverage("SquareA").update(positions)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_bad_numbers(self, value):
        coverage = StateCoverage("SquareA")
        with pytest.raises(ValueError, match="finite"):
            coverage.update(np.array([[0.0, 0.0], [0.0, value]]))
        assert coverage.value == 0.0

    def test_unknown_maze(self):
        with pytest.raises(ValueError, match="no maze"):
            StateCoverage("CartPole-v1")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "expected"), list(zip(MAZE_NAMES, (0.738, 0.616, 0.534, 0.660, 0.516, 0.336, 0.376), strict=True))
    )
    def test_random_agent(self, name, expected):
        # Coverage of uniformly random actions in 100k steps: checks starts, physics, time limit and metric together.
        n_envs = 50
        envs = gym.make_vec(f"Maze2d-{name}-v0", num_envs=n_envs, autoreset_mode="SameStep")
        rng = np.random.default_rng(0)
        coverage = StateCoverage(name)
        coverage.update(envs.reset(seed=0)[0])
        for actions in rng.uniform(-0.95, 0.95, (100_000 // n_envs, n_envs, 2)):
            coverage.update(envs.step(actions)[0])
        assert coverage.value == pytest.approx(expected, abs=0.05)
        assert coverage.value <= coverage.ceiling


class TestBinCoverage:
    def test_counts_distinct_bins(self):
        coverage = BinCoverage(dims=(0, 2), bin_width=0.5)
        points = np.random.default_rng(0).normal(size=(500, 3)) * 3
        for batch in np.array_split(points, 9):
            coverage.update(batch)
        assert coverage.value == len({(np.floor(x / 0.5), np.floor(z / 0.5)) for x, _, z in points.tolist()})
        coverage.update(points)
        assert coverage.value == len({(np.floor(x / 0.5), np.floor(z / 0.5)) for x, _, z in points.tolist()})
        coverage.reset()
        assert coverage.value == 0

    def test_widths_per_dimension_and_sides_of_zero(self):
        coverage = BinCoverage(bin_width=(1.0, 10.0))
        coverage.update(np.array([[0.5, 0.5], [0.5, 9.0], [1.5, 0.5], [-0.5, 0.5], [0.0, -0.0], [-0.0, 0.0]]))
        assert coverage.value == 3

    def test_calibration_sets_the_width_once(self):
        rng = np.random.default_rng(0)
        first, later = rng.normal(size=(100, 2)) * (1.0, 5.0), rng.normal(size=(100, 2)) * 100
        coverage = BinCoverage(n_calibration=100, width_in_std=0.5)
        coverage.update(first[:60])
        assert coverage.bin_width is None and not coverage.is_calibrated
        early = coverage.value
        coverage.update(first[60:])
        assert coverage.is_calibrated
        assert coverage.bin_width == pytest.approx(0.5 * first.std(axis=0))
        assert early <= coverage.value
        assert coverage.value == len({tuple(b) for b in np.floor(first / coverage.bin_width).tolist()})
        width = json.loads(json.dumps(coverage.bin_width))
        coverage.update(later)
        assert coverage.bin_width == width
        twin = BinCoverage(bin_width=width)
        twin.update(np.concatenate([first, later]))
        assert twin.value == coverage.value
        coverage.reset()
        twin.reset()
        assert coverage.bin_width is None
        assert twin.bin_width == width

    def test_bin_width_is_a_list_with_a_number_for_each_dimension(self):
        assert BinCoverage(dims=(0, 1), bin_width=0.5).bin_width == [0.5, 0.5]
        assert BinCoverage(dims=(0, 1), bin_width=np.array([0.5, 2])).bin_width == [0.5, 2.0]
        coverage = BinCoverage(bin_width=0.5)
        assert coverage.is_calibrated
        coverage.update(np.zeros((1, 3)))
        assert coverage.bin_width == [0.5, 0.5, 0.5]

    def test_has_no_ceiling(self):
        coverage = BinCoverage(bin_width=1.0)
        coverage.update(np.zeros((2, 2)))
        assert coverage.ceiling is None and coverage.of_ceiling is None

    def test_buffers_may_be_overwritten(self):
        coverage = BinCoverage(n_calibration=3)
        buffer = np.zeros((1, 2))
        for value in range(3):
            buffer[:] = value
            coverage.update(buffer)
        assert coverage.value == 3

    def test_constant_dimension(self):
        coverage = BinCoverage(n_calibration=4)
        coverage.update(np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]))
        assert coverage.bin_width[1] == 1.0
        assert coverage.value == 4

    @pytest.mark.parametrize(
        "arguments",
        [
            {"dims": ()},
            {"bin_width": 0.0},
            {"bin_width": (1.0, np.nan)},
            {"bin_width": [[1.0, 1.0]]},
            {"dims": (0, 1), "bin_width": (1.0, 1.0, 1.0)},
            {"n_calibration": 1},
            {"width_in_std": -1.0},
        ],
    )
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError):
            BinCoverage(**arguments)

    def test_bad_observations(self):
        coverage = BinCoverage(dims=(0, 3))
        with pytest.raises(ValueError, match="dims"):
            coverage.update(np.zeros((2, 3)))
        with pytest.raises(ValueError, match="finite"):
            coverage.update(np.full((2, 4), np.nan))
        with pytest.raises(ValueError, match="shape"):
            coverage.update(np.zeros((2, 2, 2)))
        with pytest.raises(ValueError, match="widths"):
            BinCoverage(bin_width=(1.0, 1.0)).update(np.zeros((2, 3)))
        growing = BinCoverage()
        growing.update(np.zeros((2, 3)))
        with pytest.raises(ValueError, match="before"):
            growing.update(np.zeros((2, 4)))
