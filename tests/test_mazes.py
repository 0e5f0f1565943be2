"""Mazes: geometry, physics against recorded moves, the three forms of the env, the task, images."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gym_check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_exdm.envs import (
    MAZE_ENV_IDS,
    MAZE_NAMES,
    GoalTask,
    Maze2dEnv,
    Maze2dSB3VecEnv,
    Maze2dVectorEnv,
    MazeLayout,
    PointMassDynamics,
)

RECORDED = np.load(Path(__file__).parent / "data" / "maze2d_transitions.npz")
all_mazes = pytest.mark.parametrize("name", MAZE_NAMES)


def random_actions(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.95, 0.95, (*shape, 2)).astype(np.float32)


class TestLayout:
    def test_names(self):
        expected = ("SquareA", "SquareB", "SquareC", "SquareD", "SquareTree", "SquareBottleneck", "SquareLarge")
        assert MAZE_NAMES == expected
        assert MAZE_ENV_IDS[0] == "Maze2d-SquareA-v0"
        assert MazeLayout.load("Maze2d-SquareA-v0") is MazeLayout.load("SquareA")

    def test_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match=r"no maze 'SquareZ'; the mazes are SquareA, .*SquareLarge"):
            MazeLayout.load("SquareZ")

    @all_mazes
    def test_is_connected_within_23_cells(self, name):
        layout = MazeLayout.load(name)
        distances = layout.distances(layout.start_cells[0])
        assert set(distances) == set(layout.cells) == layout.reachable_cells
        assert max(distances.values()) <= 23
        assert distances[layout.farthest_cell()] == max(distances.values())
        assert layout.is_cell.sum() == len(layout.cells)

    def test_distances_follow_the_corridors(self):
        layout = MazeLayout.load("SquareA")
        distances = layout.distances((0, 0))
        assert distances[(0, -4)] == 4
        assert distances[(2, 0)] == 6  # not 2: there is a wall between
        assert layout.farthest_cell() == (4, 0)

    @all_mazes
    def test_contains_agrees_with_cells_and_walls(self, name):
        layout = MazeLayout.load(name)
        assert layout.contains(np.array(layout.cells, dtype=float)).all()
        walls = layout.wall_array
        assert not layout.contains((walls[:, :2] + walls[:, 2:]) / 2).any()
        x_min, y_min, x_max, y_max = layout.bounding_box
        rng = np.random.default_rng(0)
        points = rng.uniform((x_min - 1, y_min - 1), (x_max + 1, y_max + 1), (2000, 2))
        by_hand = [any(abs(x - i) < 0.5 and abs(y - j) < 0.5 for i, j in layout.cells) for x, y in points]
        assert layout.contains(points).tolist() == by_hand

    def test_contains_accepts_nan_and_infinity(self):
        inside = MazeLayout.load("SquareA").contains([[np.nan, 0.0], [np.inf, 0.0], [1e300, 0.0], [0.0, 0.0], [4.5, 0.0]])
        assert inside.tolist() == [False, False, False, True, False]

    @all_mazes
    def test_starts_are_uniform_and_away_from_walls(self, name):
        layout = MazeLayout.load(name)
        starts = layout.sample_starts(np.random.default_rng(0), 5000)
        assert layout.wall_distance(starts).min() >= 0.05
        assert np.abs(starts - layout.start_cells[0]).max() <= 0.5
        # Starts extend to an open side, or to a distance of 0.05 from a wall.
        i, j = layout.start_cells[0]
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            step = (sign, 0) if axis == 0 else (0, sign)
            reach = 0.45 if layout.has_wall((i, j), (i + step[0], j + step[1])) else 0.5
            assert (sign * (starts - (i, j))[:, axis]).max() == pytest.approx(reach, abs=0.005)

    def test_copies_are_the_layout_itself_and_own_layouts_survive(self):
        layout = MazeLayout.load("SquareD")
        assert pickle.loads(pickle.dumps(layout)) is layout
        assert copy.deepcopy(layout) is layout
        walls = ((-0.5, -0.5, -0.5, 0.5), (0.5, -0.5, 0.5, 0.5), (-0.5, -0.5, 0.5, -0.5), (-0.5, 0.5, 0.5, 0.5))
        box = MazeLayout("Box", ((0, 0),), walls, ((0, 0),), ((0, 0),), (-0.5, -0.5, 0.5, 0.5), 1.0, 0.1)
        assert pickle.loads(pickle.dumps(box)).walls == walls
        env = Maze2dEnv(box)
        env.reset(seed=0)
        assert box.contains(np.array([env.step(a)[0] for a in random_actions(200)])).all()

    def test_start_far_from_any_wall(self):
        cells = tuple((i, j) for i in range(3) for j in range(3))
        rim = [(k - 0.5, y, k + 0.5, y) for k in range(3) for y in (-0.5, 2.5)]
        rim += [(x, k - 0.5, x, k + 0.5) for k in range(3) for x in (-0.5, 2.5)]
        layout = MazeLayout("Hall", cells, tuple(rim), ((1, 1),), ((2, 2),), (-0.5, -0.5, 2.5, 2.5), 9.0, 0.1)
        assert np.abs(layout.sample_starts(np.random.default_rng(0), 500) - 1).max() <= 0.5

    def test_broken_layouts_are_refused(self):
        box = (-0.5, -0.5, 0.5, 0.5)
        with pytest.raises(ValueError, match="unit segment"):
            MazeLayout("Slanted", ((0, 0),), ((-0.5, -0.5, 0.5, 0.5),), ((0, 0),), ((0, 0),), box, 1.0, 0.1)
        with pytest.raises(ValueError, match="open towards"):
            MazeLayout("Open", ((0, 0),), (), ((0, 0),), ((0, 0),), box, 1.0, 0.1)
        with pytest.raises(ValueError, match="goal cells"):
            MazeLayout("NoGoal", ((0, 0),), (), ((0, 0),), ((3, 3),), box, 1.0, 0.1)


class TestPhysics:
    @all_mazes
    def test_recorded_moves(self, name):
        state, action, next_state, hit_wall = (
            RECORDED[f"{name}/{key}"] for key in ("state", "action", "next_state", "hit_wall")
        )
        moved = PointMassDynamics(MazeLayout.load(name)).move(state, action, np.random.default_rng(0))
        # A coordinate that differs from position + action was stopped by a wall.
        stopped = np.abs(next_state - (state + action)) > 1e-9
        assert (np.abs(moved - (state + action)) > 1e-9).tolist() == stopped.tolist()
        assert stopped.any(axis=1).tolist() == hit_wall.tolist()
        assert np.abs(moved - next_state)[~stopped].max() < 1e-9
        assert np.abs(moved - next_state)[stopped].max() < 0.01

    @pytest.mark.slow
    @all_mazes
    def test_scalar_form_is_the_vectorized_form(self, name):
        layout = MazeLayout.load(name)
        dynamics = PointMassDynamics(layout)
        rng, twin = np.random.default_rng(1), np.random.default_rng(1)
        positions = np.concatenate([RECORDED[f"{name}/state"], np.array(layout.cells, dtype=float)])
        for actions in random_actions(5, len(positions), seed=2).astype(np.float64):
            moved = dynamics.move(positions, actions, rng)
            one_by_one = [dynamics.move_one(*p, *a, twin) for p, a in zip(positions.tolist(), actions.tolist(), strict=True)]
            assert moved.tolist() == [list(position) for position in one_by_one]
            positions = moved

    @pytest.mark.slow
    @all_mazes
    def test_never_leaves_the_maze_nor_crosses_a_wall(self, name):
        layout = MazeLayout.load(name)
        dynamics = PointMassDynamics(layout)
        rng = np.random.default_rng(3)
        neighbors = {cell: {cell, *layout.neighbors(cell)} for cell in layout.cells}
        allowed = {(a, c) for a in layout.cells for b in neighbors[a] for c in neighbors[b]}
        positions = layout.sample_starts(rng, 4000)
        for _ in range(100):
            moved = dynamics.move(positions, rng.uniform(-0.95, 0.95, positions.shape), rng)
            assert layout.contains(moved).all()
            cells, next_cells = np.floor(positions + 0.5).astype(int), np.floor(moved + 0.5).astype(int)
            pairs = np.unique(np.concatenate([cells, next_cells], axis=1), axis=0).tolist()
            assert {((a, b), (c, d)) for a, b, c, d in pairs} <= allowed
            positions = moved

    @all_mazes
    def test_corners_at_every_scale(self, name):
        # Moves through, along and into the corners of cells, with the smallest and the largest push-backs.
        layout = MazeLayout.load(name)
        dynamics = PointMassDynamics(layout)
        rng = np.random.default_rng(4)
        n = 20_000
        for uniform in (0.0, 1.0 - 2**-53):
            cells = np.array(layout.cells, dtype=float)[rng.integers(len(layout.cells), size=n)]
            corners = cells + rng.choice([-0.5, 0.5], (n, 2))
            positions = corners + (cells - corners) * 10.0 ** rng.uniform(-9, 0, (n, 2))
            positions = np.where(rng.random((n, 2)) < 0.2, cells, positions)
            aims = corners + rng.choice([0.0, 1e-16, -1e-16, 1e-9, -1e-9, 0.3, -0.3], (n, 2))
            displacements = (aims - positions) * rng.choice([1.0, 1.0, 1.5], (n, 1))
            displacements = np.where(rng.random((n, 1)) < 0.3, np.sign(displacements) * 0.95, displacements).clip(-0.95, 0.95)
            assert layout.contains(positions).all()
            for _ in range(3):
                positions = dynamics.move(positions, displacements, FixedUniform(uniform))
                assert layout.contains(positions).all()
                displacements = displacements[rng.permutation(n)]

    @pytest.mark.slow
    @given(st.lists(st.tuples(st.floats(-0.95, 0.95), st.floats(-0.95, 0.95)), max_size=30), st.integers(0, 100))
    def test_no_sequence_of_moves_escapes(self, moves, seed):
        layout = MazeLayout.load("SquareLarge")
        env = Maze2dEnv(layout)
        env.reset(seed=seed)
        for move in moves:
            assert layout.contains(env.step(np.array(move))[0])

    @pytest.mark.parametrize(
        ("start", "action", "expected"),
        [
            ((0.0, 0.0), (0.3, -0.2), (0.3, -0.2)),  # free
            ((0.3, 0.0), (0.9, -0.3), (0.495, -0.3)),  # slides down along the right wall
            ((0.2, 0.3), (0.9, 0.8), (0.495, 0.495)),  # into the corner: two contacts
            ((0.0, -0.3), (-0.9, -0.9), (-0.495, -1.2)),  # slides through the open side below
            ((0.4, -1.6), (0.95, -0.95), (1.35, -2.495)),  # turns into the corridor first, then meets its lower wall
        ],
    )
    def test_contacts(self, start, action, expected):
        dynamics = PointMassDynamics(MazeLayout.load("SquareA"))
        moved = dynamics.move(np.array([start]), np.array([action]), FixedUniform(0.5))
        assert moved[0] == pytest.approx(expected, abs=1e-8)

    def test_the_line_that_is_reached_first_decides(self):
        # At the corner (0.5, -1.5) of SquareA: from (0, -1) only the way down and then right is open.
        dynamics = PointMassDynamics(MazeLayout.load("SquareA"))
        down_first = dynamics.move_one(0.2, -1.45, 0.6, -0.6, FixedUniform(0.5))
        right_first = dynamics.move_one(0.45, -1.2, 0.6, -0.6, FixedUniform(0.5))
        assert down_first == pytest.approx((0.8, -2.05))
        assert right_first == pytest.approx((0.495, -1.8))


class FixedUniform:
    """Random generator whose uniform numbers are all equal."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, size=None):
        return self.value if size is None else np.full(size, self.value)


class TestRegistration:
    @pytest.mark.parametrize("env_id", MAZE_ENV_IDS)
    def test_make(self, env_id):
        env = gym.make(env_id)
        assert env.spec.max_episode_steps == 50
        assert env.unwrapped.layout is MazeLayout.load(env_id)
        low, high = env.observation_space.low, env.observation_space.high
        assert (*low, *high) == env.unwrapped.layout.bounding_box
        assert env.observation_space.dtype == np.float64
        assert env.action_space == gym.spaces.Box(-0.95, 0.95, (2,), np.float32)

    @pytest.mark.parametrize("env_id", MAZE_ENV_IDS)
    def test_checkers(self, env_id):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gym_check_env(gym.make(env_id, disable_env_checker=True, render_mode="rgb_array").unwrapped)
            sb3_check_env(gym.make(env_id))
        # SB3 recommends actions in [-1, 1]; the bound 0.95 is that of the original mazes.
        assert [str(w.message) for w in caught if "normalized Box action space" not in str(w.message)] == []

    def test_make_vec_is_truly_vectorized(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            envs = gym.make_vec("Maze2d-SquareB-v0", num_envs=3, reward_type="dense")
        assert isinstance(envs, Maze2dVectorEnv)
        assert envs.max_episode_steps == 50
        assert envs.layout.name == "SquareB"
        assert envs.observation_space.shape == (3, 2)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert gym.make_vec("Maze2d-SquareB-v0", num_envs=3, max_episode_steps=7).max_episode_steps == 7

    def test_make_vec_sync_works_too(self):
        envs = gym.make_vec("Maze2d-SquareB-v0", num_envs=2, vectorization_mode="sync")
        assert envs.reset(seed=0)[0].shape == (2, 2)


class TestEnv:
    def test_episodes_are_truncated_after_50_steps_and_never_terminated(self):
        env = gym.make("Maze2d-SquareA-v0")
        env.reset(seed=0)
        ends = [env.step(action)[2:4] for action in random_actions(50)]
        assert ends == [(False, False)] * 49 + [(False, True)]

    def test_same_seed_same_trajectory(self):
        first, second = gym.make("Maze2d-SquareC-v0"), gym.make("Maze2d-SquareC-v0")
        for seed in (0, 1):
            assert first.reset(seed=seed)[0].tolist() == second.reset(seed=seed)[0].tolist()
            for action in random_actions(40):
                assert first.step(action)[0].tolist() == second.step(action)[0].tolist()
        assert first.reset(seed=0)[0].tolist() != first.reset(seed=1)[0].tolist()
        assert first.reset()[0].tolist() != first.reset()[0].tolist()

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
    def test_copies_go_on_alike(self, duplicate):
        for env, actions in (
            (Maze2dEnv("SquareA", render_mode="rgb_array"), random_actions(30)),
            (Maze2dVectorEnv(3, layout="SquareA"), random_actions(60, 3)),
            (Maze2dSB3VecEnv("SquareA", 3), random_actions(60, 3)),
        ):
            env.reset()
            env.step(actions[0])
            twin = duplicate(env)
            for action in actions:
                assert env.step(action)[0].tolist() == twin.step(action)[0].tolist()

    def test_observations_are_not_the_state(self):
        env = Maze2dEnv("SquareA")
        observation = env.reset(seed=0)[0]
        before = env.position.tolist()
        observation[:] = 100.0
        assert env.position.tolist() == before
        vector_env = Maze2dVectorEnv(2, layout="SquareA")
        vector_env.reset(seed=0)[0][:] = 100.0
        vector_env.step(np.zeros((2, 2)))[0][:] = 100.0
        assert vector_env.layout.contains(vector_env.positions).all()

    def test_actions_are_clipped(self):
        env = Maze2dEnv("SquareBottleneck")
        env.reset(options={"position": (2.0, 2.0)})
        assert env.step(np.array([5.0, -7.0]))[0] == pytest.approx([2.95, 1.05])
        vector_env = Maze2dVectorEnv(2, layout="SquareBottleneck")
        vector_env.reset(options={"position": (2.0, 2.0)})
        assert vector_env.step(np.array([[5.0, -7.0], [0.0, 0.0]]))[0] == pytest.approx(np.array([[2.95, 1.05], [2.0, 2.0]]))

    @pytest.mark.parametrize("action", [[0.1, 0.2], (0, 0), np.array([1, 0]), np.float32([0.5, 0.5])])
    def test_actions_of_other_types(self, action):
        env = Maze2dEnv("SquareA")
        env.reset(seed=0)
        assert env.step(action)[0].dtype == np.float64

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (np.array([np.nan, 0.0]), "finite"),
            (np.array([np.inf, 0.0]), "finite"),
            ([0.0, -np.inf], "finite"),
            (np.zeros(3), "shape"),
            (np.zeros((1, 2)), "shape"),
            (0.5, "shape"),
            ("up", "numbers"),
            (None, "shape|finite"),
        ],
    )
    def test_bad_actions(self, action, message):
        env = Maze2dEnv("SquareA")
        env.reset(seed=0)
        before = env.position.tolist()
        with pytest.raises(ValueError, match=message):
            env.step(action)
        assert env.position.tolist() == before

    def test_step_before_reset(self):
        for env, action in ((Maze2dEnv(), np.zeros(2)), (Maze2dVectorEnv(2), np.zeros((2, 2)))):
            with pytest.raises(ResetNeeded):
                env.step(action)
        with pytest.raises(ResetNeeded):
            Maze2dEnv().position  # noqa: B018

    @pytest.mark.parametrize(
        "arguments",
        [
            {"layout": "SquareZ"},
            {"reward_type": "shaped"},
            {"goal_cell": (1, 1)},
            {"goal_cell": (0.5, 0)},
            {"goal_cell": "nearest"},
            {"goal_cell": 3},
            {"goal_radius": 0.0},
            {"goal_radius": float("nan")},
            {"render_mode": "human"},
        ],
    )
    def test_bad_arguments(self, arguments):
        for env_class in (Maze2dEnv, Maze2dVectorEnv):
            with pytest.raises(ValueError):
                env_class(**arguments)

    @pytest.mark.parametrize("arguments", [{"num_envs": 0}, {"max_episode_steps": 0}, {"autoreset_mode": "never"}])
    def test_bad_vector_arguments(self, arguments):
        with pytest.raises(ValueError):
            Maze2dVectorEnv(**arguments)


class TestResetOptions:
    def test_position(self):
        env = gym.make("Maze2d-SquareA-v0")
        assert env.reset(options={"position": (2.2, -1.7)})[0].tolist() == [2.2, -1.7]
        assert env.unwrapped.layout.wall_distance(env.reset(options={})[0]) >= 0.05  # the option is used once

    def test_positions_of_a_vector_env(self):
        envs = Maze2dVectorEnv(2, layout="SquareA")
        assert envs.reset(options={"position": (2.2, -1.7)})[0].tolist() == [[2.2, -1.7]] * 2
        assert envs.reset(options={"position": [(2.2, -1.7), (0, 0)]})[0].tolist() == [[2.2, -1.7], [0, 0]]
        with pytest.raises(ValueError, match="shape"):
            envs.reset(options={"position": np.zeros((3, 2))})

    @pytest.mark.parametrize(
        ("position", "message"),
        [
            ((1.0, 0.0), "free space"),  # between two corridors
            ((9.0, 9.0), "free space"),
            ((0.5, 0.0), "free space"),  # on a wall
            ((-0.5, -4.5), "free space"),
            ((np.nan, 0.0), "free space"),
            ((0.0, np.inf), "free space"),
            ((0.0, 0.0, 0.0), "shape"),
            (0.0, "shape"),
            ("start", "numbers"),
            ((None, 0.0), "free space|numbers"),
        ],
    )
    def test_bad_positions(self, position, message):
        for env in (Maze2dEnv("SquareA"), Maze2dVectorEnv(2, layout="SquareA")):
            with pytest.raises(ValueError, match=message):
                env.reset(options={"position": position})

    def test_reset_mask(self):
        envs = Maze2dVectorEnv(3, layout="SquareA", max_episode_steps=4, autoreset_mode=AutoresetMode.DISABLED)
        before = envs.reset(seed=0)[0]
        mask = np.array([False, True, False])
        after = envs.reset(options={"reset_mask": mask})[0]
        assert (before == after).all(axis=1).tolist() == [True, False, True]
        for action in random_actions(4, 3):
            truncated = envs.step(action)[3]
        assert truncated.all()
        with pytest.raises(ResetNeeded, match=r"\[0, 1, 2\]"):
            envs.step(random_actions(3))
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options={"reset_mask": np.array([1, 0, 0])})


class TestTask:
    def test_sparse_reward(self):
        env = Maze2dEnv("SquareA")
        assert env.goal.tolist() == [4.0, 0.0]
        assert env.reset(options={"position": (4.0, -0.5)})[1] == {"is_success": False}
        _, reward, terminated, truncated, info = env.step(np.array([0.0, 0.3]))
        assert (reward, terminated, truncated, info) == (0.0, False, False, {"is_success": False})
        _, reward, terminated, truncated, info = env.step(np.array([0.0, 0.1]))
        assert (reward, terminated, truncated, info) == (1.0, False, False, {"is_success": True})

    def test_dense_reward(self):
        env = Maze2dEnv("SquareA", reward_type="dense")
        env.reset(options={"position": (4.0, -2.0)})
        assert env.step(np.array([0.3, 0.4]))[1] == pytest.approx(-np.hypot(0.3, 1.6))

    def test_goal_arguments(self):
        assert Maze2dEnv("SquareA", goal_cell=(2, -2)).goal.tolist() == [2.0, -2.0]
        assert Maze2dEnv("SquareA", goal_cell=np.array([2, -2])).goal.tolist() == [2.0, -2.0]
        assert Maze2dEnv("SquareBottleneck", goal_cell="farthest").goal.tolist() == [0.0, 9.0]
        env = Maze2dEnv("SquareA", goal_radius=0.4)
        env.reset(options={"position": (4.0, 0.0)})
        assert env.step(np.array([0.0, -0.35]))[4]["is_success"]

    def test_terminate_on_success(self):
        env = gym.make("Maze2d-SquareA-v0", terminate_on_success=True)
        env.reset(options={"position": (4.0, -0.2)})
        assert env.step(np.array([0.0, 0.1], dtype=np.float32))[1:4] == (1.0, True, False)
        envs = Maze2dVectorEnv(2, layout="SquareA", terminate_on_success=True)
        envs.reset(options={"position": [(4.0, -0.2), (0.0, 0.0)]})
        _, reward, terminated, truncated, _ = envs.step(np.array([[0.0, 0.1], [0.0, 0.1]]))
        assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([1.0, 0.0], [True, False], [False, False])

    @pytest.mark.parametrize("reward_type", ["sparse", "dense"])
    def test_compute_reward(self, reward_type):
        task = GoalTask(MazeLayout.load("SquareA"), reward_type)
        achieved, desired = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.1]]), np.array([[0.0, 0.1], [1.0, 3.0], [2.0, 2.0]])
        expected = [1.0, 0.0, 1.0] if reward_type == "sparse" else [-0.1, -2.0, -0.1]
        assert task.compute_reward(achieved, desired, [{}] * 3) == pytest.approx(expected)
        assert task.compute_reward(achieved[1], desired[1], {}) == pytest.approx(expected[1])
        assert isinstance(task.compute_reward(achieved[1], desired[1]), float)
        assert task.compute_reward(achieved, desired[0]).shape == (3,)
        with pytest.raises(ValueError, match="shape"):
            task.compute_reward(np.zeros(3), desired)

    @pytest.mark.parametrize("reward_type", ["sparse", "dense"])
    def test_compute_reward_is_the_reward_of_a_step(self, reward_type):
        env = Maze2dEnv("SquareB", reward_type=reward_type)
        env.reset(options={"position": (4.0, -0.5)})
        for action in random_actions(50):
            observation, reward, _, _, _ = env.step(action)
            assert env.task.compute_reward(observation, env.goal, {}) == reward


class TestVectorEnv:
    @all_mazes
    @pytest.mark.parametrize("reward_type", ["sparse", "dense"])
    def test_with_one_sub_env_equals_the_single_env(self, name, reward_type):
        arguments = {"layout": name, "reward_type": reward_type, "goal_cell": MazeLayout.load(name).start_cells[0]}
        env = Maze2dEnv(**arguments)
        envs = Maze2dVectorEnv(1, 40, **arguments, autoreset_mode=AutoresetMode.SAME_STEP)
        assert env.reset(seed=5)[0].tolist() == envs.reset(seed=5)[0][0].tolist()
        for step, action in enumerate(random_actions(200), start=1):
            observation, reward, _, _, info = env.step(action)
            observations, rewards, _, truncations, infos = envs.step(action[None])
            assert rewards.tolist() == [reward]
            assert truncations.tolist() == [step % 40 == 0]
            if step % 40:
                assert observations[0].tolist() == observation.tolist()
                assert infos["is_success"].tolist() == [info["is_success"]]
            else:
                assert infos["final_obs"][0].tolist() == observation.tolist()
                assert infos["final_info"]["is_success"].tolist() == [info["is_success"]]
                assert observations[0].tolist() == env.reset()[0].tolist()

    def test_next_step_autoreset(self):
        envs = gym.make_vec("Maze2d-SquareA-v0", num_envs=4, reward_type="dense")
        envs.reset(seed=0)
        for episode in range(3):
            for step in range(1, 51):
                before, reward, terminated, truncated, infos = envs.step(random_actions(4, seed=step))
                assert truncated.tolist() == [step == 50] * 4, episode
                assert not terminated.any()
                assert (reward < 0).all()
                assert infos["is_success"].shape == (4,)
            # The step after the end of an episode only resets.
            observations, reward, terminated, truncated, infos = envs.step(random_actions(4))
            assert reward.tolist() == [0.0] * 4
            assert not (terminated | truncated | infos["is_success"]).any()
            assert (envs.layout.wall_distance(observations) >= 0.05).all()
            assert (observations != before).all()

    def test_sub_envs_end_on_their_own(self):
        envs = Maze2dVectorEnv(2, 10, "SquareA", terminate_on_success=True)
        envs.reset(seed=0, options={"position": [(4.0, 0.0), (0.0, -2.0)]})
        still = np.zeros((2, 2))
        assert envs.step(still)[2].tolist() == [True, False]
        observations, rewards, terminated, _, _ = envs.step(still)  # resets only the first
        assert np.abs(observations[0]).max() <= 0.5
        assert observations[1].tolist() == [0.0, -2.0]
        assert rewards.tolist() == [0.0, 0.0]
        assert not terminated.any()
        truncations = [envs.step(still)[3].tolist() for _ in range(10)]
        assert [step for step, (_, second) in enumerate(truncations, start=3) if second] == [10]
        assert [step for step, (first, _) in enumerate(truncations, start=3) if first] == [12]

    def test_same_step_autoreset(self):
        envs = Maze2dVectorEnv(3, 5, "SquareA", autoreset_mode="SameStep", terminate_on_success=True)
        envs.reset(seed=0, options={"position": [(4.0, 0.0), (0.0, -2.0), (0.0, -3.0)]})
        observations, _, terminated, _, infos = envs.step(np.zeros((3, 2)))
        assert terminated.tolist() == infos["_final_obs"].tolist() == [True, False, False]
        assert infos["final_obs"][0].tolist() == [4.0, 0.0]
        assert infos["final_obs"][1] is None
        assert infos["final_info"]["is_success"].tolist() == [True, False, False]
        assert infos["is_success"].tolist() == [False, False, False]
        assert np.abs(observations[0]).max() <= 0.5
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert Maze2dVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP

    def test_agrees_with_gymnasiums_own_vectorization(self):
        ours = gym.make_vec("Maze2d-SquareC-v0", num_envs=1, max_episode_steps=20)
        theirs = gym.make_vec("Maze2d-SquareC-v0", num_envs=1, max_episode_steps=20, vectorization_mode="sync")
        assert ours.reset(seed=3)[0].tolist() == theirs.reset(seed=3)[0].tolist()
        for action in random_actions(100, 1):
            for mine, other in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
                assert mine.tolist() == other.tolist()
                assert mine.dtype == other.dtype

    def test_same_seed_same_trajectory(self):
        first, second = (gym.make_vec("Maze2d-SquareTree-v0", num_envs=5) for _ in range(2))
        assert first.reset(seed=1)[0].tolist() == second.reset(seed=1)[0].tolist()
        for action in random_actions(120, 5):
            assert first.step(action)[0].tolist() == second.step(action)[0].tolist()

    def test_no_time_limit(self):
        envs = Maze2dVectorEnv(2, None, "SquareA")
        envs.reset(seed=0)
        assert not any(envs.step(action)[3].any() for action in random_actions(200, 2))

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            (np.array([[0.0, 0.0], [np.nan, 0.0]]), r"finite, those of the envs \[1\]"),
            (np.array([[np.inf, 0.0], [0.0, 0.0]]), r"envs \[0\]"),
            (np.zeros(2), "shape"),
            (np.zeros((3, 2)), "shape"),
            ("up", "numbers"),
        ],
    )
    def test_bad_actions(self, actions, message):
        envs = Maze2dVectorEnv(2)
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            envs.step(actions)

    def test_actions_are_left_alone(self):
        envs = Maze2dVectorEnv(2, 1)
        envs.reset(seed=0)
        actions = np.full((2, 2), 3.0)
        for _ in range(2):
            envs.step(actions)
        assert (actions == 3.0).all()


class TestSB3VecEnv:
    def test_contract_against_dummy_vec_env(self):
        ours = Maze2dSB3VecEnv("SquareA", 1, seed=7, reward_type="dense")
        theirs = DummyVecEnv([lambda: Monitor(gym.make("Maze2d-SquareA-v0", reward_type="dense"))])
        theirs.seed(7)
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert ours.reset().tolist() == theirs.reset().tolist()
        for action in random_actions(120, 1):
            (obs, rewards, dones, infos), (obs_, rewards_, dones_, infos_) = ours.step(action), theirs.step(action)
            assert obs.tolist() == obs_.tolist()
            assert rewards.tolist() == rewards_.tolist()
            assert rewards.dtype == rewards_.dtype
            assert dones.tolist() == dones_.tolist()
            info, info_ = infos[0], infos_[0]
            assert set(info) == set(info_)
            assert info["is_success"] == info_["is_success"]
            assert info["TimeLimit.truncated"] == info_["TimeLimit.truncated"]
            if dones[0]:
                assert info["terminal_observation"].tolist() == info_["terminal_observation"].tolist()
                assert (info["episode"]["r"], info["episode"]["l"]) == pytest.approx((info_["episode"]["r"], 50))
                assert info["episode"]["t"] >= 0
        assert ours.reset_infos == theirs.reset_infos

    def test_termination_is_not_a_time_out(self):
        vec_env = Maze2dSB3VecEnv("SquareA", 2, terminate_on_success=True)
        vec_env.set_options([{"position": (4.0, 0.0)}, {"position": (0.0, -2.0)}])
        vec_env.reset()
        obs, rewards, dones, infos = vec_env.step(np.zeros((2, 2)))
        assert (rewards.tolist(), dones.tolist()) == ([1.0, 0.0], [True, False])
        assert infos[0]["is_success"] and not infos[0]["TimeLimit.truncated"]
        assert infos[0]["terminal_observation"].tolist() == [4.0, 0.0]
        assert infos[0]["episode"]["r"] == 1.0 and infos[0]["episode"]["l"] == 1
        assert set(infos[1]) == {"is_success", "TimeLimit.truncated"}
        assert np.abs(obs[0]).max() <= 0.5
        assert vec_env.step(np.zeros((2, 2)))[3][1].keys() == infos[1].keys()

    def test_seed(self):
        first, second = Maze2dSB3VecEnv("SquareA", 4, seed=1), Maze2dSB3VecEnv("SquareA", 4)
        second.seed(1)
        assert first.reset().tolist() == second.reset().tolist()
        assert first.reset().tolist() == second.reset().tolist()
        assert first.reset().tolist() != Maze2dSB3VecEnv("SquareA", 4, seed=2).reset().tolist()

    def test_attributes(self):
        vec_env = Maze2dSB3VecEnv("Maze2d-SquareB-v0", 3, seed=0)
        obs = vec_env.reset()
        assert vec_env.layout is MazeLayout.load("SquareB")
        assert vec_env.get_attr("layout", indices=[0, 2]) == [vec_env.layout] * 2
        assert vec_env.get_attr("position", indices=1)[0].tolist() == obs[1].tolist()
        assert vec_env.get_attr("observation_space")[0] == vec_env.observation_space
        assert vec_env.env_method("get_wrapper_attr", "layout") == [vec_env.layout] * 3
        assert vec_env.has_attr("goal") and not vec_env.has_attr("no_such_thing")
        assert vec_env.env_is_wrapped(Monitor) == [True] * 3
        assert vec_env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
        vec_env.set_attr("terminate_on_success", True)
        assert vec_env.get_attr("terminate_on_success") == [True] * 3
        with pytest.raises(ValueError, match="share"):
            vec_env.set_attr("terminate_on_success", False, indices=0)
        with pytest.raises(AttributeError, match="no method 'reset'"):
            vec_env.env_method("reset")
        vec_env.set_options([{"position": (0, 0)}, {}, {}])
        with pytest.raises(ValueError, match="every sub-env"):
            vec_env.reset()
        vec_env.close()

    def test_sb3_trains_logs_and_evaluates(self):
        vec_env = Maze2dSB3VecEnv("SquareA", 4, seed=0, reward_type="dense")
        model = PPO("MlpPolicy", vec_env, n_steps=64, batch_size=64, n_epochs=1, policy_kwargs={"net_arch": [8]}, device="cpu")
        model.learn(512)
        assert len(model.ep_info_buffer) == 8
        assert len(model.ep_success_buffer) == 8
        assert {info["l"] for info in model.ep_info_buffer} == {50}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rewards, lengths = evaluate_policy(model, vec_env, n_eval_episodes=4, return_episode_rewards=True)
        assert lengths == [50] * 4
        assert max(rewards) < 0

    def test_images(self):
        vec_env = Maze2dSB3VecEnv("SquareA", 4, seed=0, render_mode="rgb_array")
        vec_env.reset()
        images = vec_env.get_images()
        assert len(images) == 4
        assert vec_env.render("rgb_array").shape == (2 * images[0].shape[0], 2 * images[0].shape[1], 3)


class TestRendering:
    @all_mazes
    def test_shows_the_point_where_it_is(self, name):
        env = gym.make(f"Maze2d-{name}-v0", render_mode="rgb_array")
        cells = env.unwrapped.layout.cells
        env.reset(seed=0, options={"position": cells[0]})
        first = env.render()
        assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
        env.reset(options={"position": cells[1]})
        second = env.render()
        changed = (first != second).any(axis=2)
        # The image is upright: x to the right, y upwards.
        scale = first.shape[1] / (np.ptp(np.array(cells), axis=0)[0] + 1.5)  # pixels a cell, a quarter cell of margin
        red = np.argwhere((np.abs(second.astype(int) - (208, 71, 71)).max(axis=2) < 4) & changed)
        x_min, y_max = env.unwrapped.layout.bounding_box[0], env.unwrapped.layout.bounding_box[3]
        row, column = red.mean(axis=0) + 0.5
        assert column / scale - 0.25 + x_min == pytest.approx(cells[1][0], abs=0.05)
        assert y_max - (row / scale - 0.25) == pytest.approx(cells[1][1], abs=0.05)

    def test_trail_is_drawn_and_forgotten(self):
        env = Maze2dEnv("SquareA", render_mode="rgb_array")
        env.reset(seed=0, options={"position": (0, -2)})
        fresh = env.render()
        env.step(np.array([0.0, 0.9]))
        env.step(np.array([0.0, -0.9]))
        trail = env.render()
        assert (fresh != trail).any()
        env.reset(options={"position": (0, -2)})
        assert (env.render() == fresh).all()

    def test_without_render_mode(self):
        for env in (Maze2dEnv(), Maze2dVectorEnv(2)):
            env.reset(seed=0)
            with pytest.warns(UserWarning, match="render_mode"):
                assert env.render() is None

    def test_vector_env_renders_one_image_per_sub_env(self):
        envs = gym.make_vec("Maze2d-SquareA-v0", num_envs=3, render_mode="rgb_array")
        envs.reset(seed=0)
        assert len(envs.render()) == 3
