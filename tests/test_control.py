"""Continuous control: requirements, rewards against their formulas, dm_control's own tasks, the vectorized form, images."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env as gym_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_exdm.envs import TASKS, VECTORIZED_DOMAINS, ControlTask, SB3VecEnv, expert_return
from sb3_exdm.finetuning import relabel

MISSING = [name for name in ("dm_control", "mujoco", "shimmy") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the extra dmc is not installed: {', '.join(MISSING)}", allow_module_level=True)
versions: Any = importlib.import_module("sb3_exdm.envs.control.versions")  # chooses a renderer before dm_control does

import mujoco  # noqa: E402
import shimmy  # noqa: E402, F401 - registers its environments
from dm_control import suite  # noqa: E402
from dm_control.mujoco import Physics  # noqa: E402
from dm_control.rl.control import PhysicsError  # noqa: E402
from dm_control.suite import walker as suite_walker  # noqa: E402
from dm_control.suite.utils import randomizers  # noqa: E402
from dm_control.utils.rewards import tolerance  # noqa: E402
from dm_env import specs  # noqa: E402

from sb3_exdm.envs.control import ControlEnv, ControlVectorEnv, ControlWrapper  # noqa: E402
from sb3_exdm.envs.control.domain import Readings, linear_tolerance  # noqa: E402
from sb3_exdm.envs.control.parameters import PARAMETERS, ParameterTable  # noqa: E402
from sb3_exdm.envs.control.relabel import DOMAINS, RelabelingTask  # noqa: E402
from sb3_exdm.envs.control.rendering import NO_OPENGL  # noqa: E402
from sb3_exdm.envs.control.spaces import FlatObservations, ScaledActions  # noqa: E402
from sb3_exdm.envs.control.threads import ThreadTeam, choose_num_threads  # noqa: E402

WALKER, QUADRUPED, HOPPER = "URLB/walker-walk-v0", "URLB/quadruped-walk-v0", "URLB/hopper-hop-v0"
JACO = "URLB/jaco-reach_top_left-v0"
SIZES = {"walker": (24, 6), "quadruped": (78, 12), "hopper": (15, 4), "jaco": (55, 9)}
all_modes = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
all_domains = pytest.mark.parametrize("domain", VECTORIZED_DOMAINS)
one_of_each_domain = pytest.mark.parametrize("env_id", [WALKER, QUADRUPED, HOPPER, JACO])


def vectorized_tasks(*excluded: str) -> pytest.MarkDecorator:
    """Parametrize over the tasks of the vectorized domains; all but the first of each domain are slow tests."""
    tasks = [task for task in TASKS.values() if task.domain in VECTORIZED_DOMAINS and task.name not in excluded]
    first = {task.domain: task.env_id for task in reversed(tasks)}
    marks = {task.env_id: () if task.env_id in first.values() else (pytest.mark.slow,) for task in tasks}
    return pytest.mark.parametrize("env_id", [pytest.param(env_id, marks=marks[env_id]) for env_id in marks])


@cache
def made(env_id: str) -> gym.Env:
    """Make an environment that tests share; each test starts with a seeded reset."""
    return gym.make(env_id)


def random_actions(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def run_python(code: str, **environment: str) -> str:
    """Run code in a new interpreter and return its output."""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestRequirements:
    @pytest.mark.parametrize(
        ("package", "version", "message"),
        [
            ("dm_control", None, 'need dm_control, which is not installed: pip install "sb3-exdm[dmc]".'),
            ("shimmy", None, 'need shimmy, which is not installed: pip install "sb3-exdm[dmc]".'),
            ("mujoco", "4.0.0", '3.17 or newer, but older than 4; 4.0.0 is installed: pip install "mujoco>=3.17,<4".'),
            ("mujoco", "3.2.0", '3.17 or newer, but older than 4; 3.2.0 is installed: pip install "mujoco>=3.17,<4".'),
            ("dm_control", "1.0.9", 'older than 2; 1.0.9 is installed: pip install "dm_control>=1.0.50,<2".'),
            ("shimmy", "unknown", 'unknown is installed: pip install "shimmy>=2.0,<3".'),
        ],
    )
    def test_errors_are_one_sentence(self, monkeypatch, package, version, message):
        fake_versions(monkeypatch, **{package: version})
        with pytest.raises(ImportError) as caught:
            versions.check_versions()
        assert str(caught.value).startswith(f"The dm_control tasks need {package}")
        assert str(caught.value).endswith(message)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("version", ["3.17.0", "3.17.0rc1", "3.17", "3.100.2.post1"])
    def test_supported_versions(self, monkeypatch, version):
        fake_versions(monkeypatch, mujoco=version)
        versions.check_versions()

    @pytest.mark.slow
    def test_the_library_works_without_the_extra(self):
        printed = run_python(
            """
import sys
from importlib import metadata

NAMES = {"dm_control", "mujoco", "shimmy"}
find_version = metadata.version

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version(name):
    if name in NAMES:
        raise metadata.PackageNotFoundError(name)
    return find_version(name)

sys.meta_path.insert(0, Blocker())
metadata.version = version

import gymnasium as gym
import sb3_exdm
from sb3_exdm.envs import TASKS

assert all(env_id in gym.registry for env_id in TASKS)
for make in (gym.make, gym.make_vec):
    try:
        make("URLB/walker-walk-v0")
    except ImportError as error:
        print(error)
"""
        )
        expected = 'The dm_control tasks need dm_control, which is not installed: pip install "sb3-exdm[dmc]".'
        assert printed.splitlines() == [expected] * 2

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="EGL is chosen on Linux alone")
    def test_simulation_needs_no_opengl(self):
        code = """
import os
for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
    os.environ.pop(name, None)
import gymnasium as gym
import sb3_exdm.envs

env = gym.make("URLB/hopper-hop-v0", render_mode="rgb_array")
env.reset(seed=0)
env.step(env.action_space.sample())
try:
    env.render()
except ImportError as error:
    print(error)
"""
        assert run_python(code, MUJOCO_EGL_DEVICE_ID="1000").splitlines() == [NO_OPENGL]

    def test_a_choice_of_renderer_is_left_alone(self, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "osmesa")
        versions.choose_renderer()
        assert os.environ["MUJOCO_GL"] == "osmesa"


def fake_versions(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    installed = {"dm_control": "1.0.50", "mujoco": "3.17.0", "shimmy": "2.0.1", **changes}

    def version(package: str) -> str:
        if installed[package] is None:
            raise versions.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(versions.metadata, "version", version)


class TestTasks:
    def test_catalogue(self):
        assert len(TASKS) == 16
        assert TASKS[WALKER] == ControlTask("walker", "walk", 1000, 971.0, (14, 1, 16))
        assert TASKS[JACO].max_episode_steps == 250
        assert expert_return("URLB/jaco-reach_top_right-v0") == 223.0
        assert expert_return(HOPPER) is None
        assert expert_return("Maze2d-SquareA-v0") is None

    @pytest.mark.slow
    @pytest.mark.parametrize("env_id", TASKS)
    def test_spaces(self, env_id):
        env, task = made(env_id), TASKS[env_id]
        n_observations, n_actions = SIZES[task.domain]
        assert env.spec.max_episode_steps == task.max_episode_steps
        assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (n_observations,), np.float32)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (n_actions,), np.float32)
        observation = env.reset(seed=0)[0]
        assert observation.dtype == np.float32
        assert observation in env.observation_space
        observation, reward, *_ = env.step(np.ones(n_actions, dtype=np.float32))
        assert observation in env.observation_space
        assert isinstance(reward, float)

    def test_coverage_dims_are_what_the_catalogue_says(self):
        chosen, data = {}, {}
        for env_id in (WALKER, QUADRUPED, HOPPER, JACO):
            env = made(env_id)
            env.reset(seed=0)
            for action in random_actions(5, *env.action_space.shape):
                observation = env.step(action)[0]
            chosen[env_id] = observation[list(TASKS[env_id].coverage_dims)].tolist()
            data[env_id] = env.unwrapped.dm_env.physics.data.ptr
        walker, quadruped, hopper, jaco = (data[env_id] for env_id in (WALKER, QUADRUPED, HOPPER, JACO))
        torso = walker.body("torso")
        assert chosen[WALKER] == pytest.approx([torso.xpos[2], torso.xmat[2], walker.joint("rootx").qvel[0]])
        velocity = quadruped.sensor("velocimeter").data
        assert chosen[QUADRUPED] == pytest.approx([velocity[0], velocity[1], quadruped.body("torso").xmat[8]])
        joints = [hopper.joint("rootz").qpos[0], hopper.joint("rooty").qpos[0], hopper.joint("rootx").qvel[0]]
        assert chosen[HOPPER] == pytest.approx(joints)
        assert chosen[JACO] == pytest.approx(jaco.site("jaco_arm/jaco_hand/pinchsite").xpos, abs=1e-6)

    @pytest.mark.slow
    @one_of_each_domain
    def test_checkers(self, env_id):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gym_check_env(gym.make(env_id, disable_env_checker=True).unwrapped, skip_render_check=True)
            sb3_check_env(made(env_id))
        # The observations of Gymnasium's own robots are unbounded too.
        assert [str(w.message) for w in caught if "infinity" not in str(w.message)] == []

    @pytest.mark.slow
    @one_of_each_domain
    def test_episodes_are_truncated_at_their_limit_and_never_terminated(self, env_id):
        env, n_steps = made(env_id), TASKS[env_id].max_episode_steps
        env.reset(seed=0)
        ends = [env.step(action)[2:4] for action in random_actions(n_steps, *env.action_space.shape)]
        assert ends == [(False, False)] * (n_steps - 1) + [(False, True)]

    def test_another_time_limit(self):
        env = gym.make(HOPPER, max_episode_steps=1010)
        env.reset(seed=0)
        actions = random_actions(1010, 4)
        assert [step for step, action in enumerate(actions, start=1) if env.step(action)[3]] == [1010]

    @pytest.mark.slow
    @one_of_each_domain
    def test_same_seed_same_episodes(self, env_id):
        first, second = made(env_id), gym.make(env_id)
        trajectories: list[list[Any]] = [[], []]
        for env, trajectory in zip((first, second), trajectories, strict=True):
            for seed in (4, None):
                trajectory.append(env.reset(seed=seed)[0].tolist())
                for action in random_actions(10, *env.action_space.shape):
                    observation, reward, *_ = env.step(action)
                    trajectory.append((observation.tolist(), reward))
        assert trajectories[0] == trajectories[1]
        assert trajectories[0][0] != trajectories[0][11]
        assert first.reset(seed=5)[0].tolist() != second.reset(seed=6)[0].tolist()

    @pytest.mark.slow
    @one_of_each_domain
    def test_pickles_are_new_environments(self, env_id):
        env = made(env_id)
        first = env.reset(seed=3)[0]
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        assert pickle.loads(pickle.dumps(env)).reset(seed=3)[0].tolist() == first.tolist()

    @pytest.mark.slow
    def test_in_worker_processes(self):
        # The module in the id is imported in the workers.
        envs = make_vec_env(f"sb3_exdm.envs:{WALKER}", 2, seed=0, vec_env_cls=SubprocVecEnv)
        first = envs.reset()
        env = made(WALKER)
        assert first.tolist() == [env.reset(seed=0)[0].tolist(), env.reset(seed=1)[0].tolist()]
        assert envs.step(np.zeros((2, 6)))[1].shape == (2,)
        envs.close()

    @pytest.mark.slow
    def test_position_of_jacos_brick(self):
        places = {"top_left": (-0.09, 0.09), "top_right": (0.09, 0.09), "bottom_left": (-0.09, -0.09)}
        for name, place in {**places, "bottom_right": (0.09, -0.09)}.items():
            env = made(f"URLB/jaco-reach_{name}-v0")
            env.reset(seed=0)
            brick = env.unwrapped.dm_env.physics.data.ptr.body("duplo2x4/").xpos
            assert brick == pytest.approx((*place, 0.0), abs=2e-3)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="render_mode must be 'rgb_array' or None, got 'human'"):
            ControlEnv("walker", "walk", "human")
        with pytest.raises(KeyError):
            ControlEnv("walker", "swim")

    def test_an_unstable_simulation(self):
        env = gym.make(HOPPER)
        env.reset(seed=0)
        env.unwrapped.dm_env.physics.data.qvel[:] = 1e10
        with pytest.raises(PhysicsError):
            env.step(np.zeros(4, dtype=np.float32))

    def test_close_twice(self):
        env = gym.make(HOPPER)
        env.reset(seed=0)
        env.close()
        env.unwrapped.close()


class TestWrapper:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("env_id", "n_observations", "n_actions"),
        [("dm_control/cheetah-run-v0", 17, 6), ("dm_control/reach_site_features-v0", 45, 9)],
    )
    def test_shimmys_own_environments(self, env_id, n_observations, n_actions):
        env = ControlWrapper(gym.make(env_id))
        assert env.observation_space.shape == (n_observations,)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (n_actions,), np.float32)
        plain = gym.make(env_id)
        observation, parts = env.reset(seed=0)[0], plain.reset(seed=0)[0]
        low, high = plain.action_space.low, plain.action_space.high
        for action in random_actions(3, n_actions):
            flat = np.concatenate([np.ravel(part) for part in parts.values()])
            assert observation == pytest.approx(flat.astype(np.float32), abs=1e-6)
            assert observation.dtype == np.float32
            observation, reward, *_ = env.step(action)
            parts, expected_reward, *_ = plain.step(low + (action.astype(np.float64) + 1) / 2 * (high - low))
            assert reward == pytest.approx(expected_reward)

    def test_other_environments_are_refused(self):
        with pytest.raises(ValueError, match="needs an environment of shimmy such as"):
            ControlWrapper(gym.make("Pendulum-v1"))

    def test_images_are_refused(self):
        spec = {"position": specs.Array((3,), np.float64), "front": specs.BoundedArray((1, 84, 84, 3), np.uint8, 0, 255)}
        with pytest.raises(ValueError, match="no images, but 'front' is"):
            FlatObservations(spec)

    @pytest.mark.slow
    def test_a_vision_task_is_refused(self, opengl):
        with pytest.raises(ValueError, match="no images, but 'front_close' is"):
            ControlWrapper(gym.make("dm_control/reach_site_vision-v0"))

    def test_actions_are_mapped_linearly(self):
        low, high = np.array([-1.0, -0.8, 2.0]), np.array([1.1, 0.8, 7.0])
        scaled = ScaledActions(low, high)
        for weight in (0.0, 0.3, 0.5, 1.0):
            assert scaled(np.full((2, 3), 2 * weight - 1)) == pytest.approx(np.stack([low + weight * (high - low)] * 2))
        with pytest.raises(ValueError, match="finite bounds"):
            ScaledActions(low, np.array([1.0, np.inf, 1.0]))


def gaussian(distance: float) -> float:
    """1 at the distance 0, 0.1 at the distance 1."""
    return float(np.exp(-0.5 * (max(distance, 0.0) * np.sqrt(-2 * np.log(0.1))) ** 2))


def linear(value: float, target: float, margin: float) -> float:
    """1 from the target on, 0.5 one margin below it."""
    return 1.0 if value >= target else max(0.0, 1 - 0.5 * (target - value) / margin)


def clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def upright(data: Any) -> float:
    return (1 + data.body("torso").xmat[8]) / 2


def momentum(data: Any) -> float:
    return data.body("torso").subtree_angmom[1]


def walker_stand(data: Any) -> float:
    standing = gaussian((1.2 - data.body("torso").xpos[2]) / 0.6)
    return (3 * standing + upright(data)) / 4


def forward_speed(data: Any) -> float:
    return data.body("torso").subtree_linvel[0]


def quadruped_speed(data: Any) -> float:
    return data.sensor("velocimeter").data[0]


def hopper_stands(data: Any) -> float:
    return float(0.6 <= data.body("torso").xipos[2] - data.body("foot").xipos[2] <= 2)


FORMULAS: dict[str, dict[str, Callable[[Any], float]]] = {
    "walker": {
        "stand": walker_stand,
        "walk": lambda data: walker_stand(data) * (5 * linear(forward_speed(data), 1, 0.5) + 1) / 6,
        "run": lambda data: walker_stand(data) * (5 * linear(forward_speed(data), 8, 4) + 1) / 6,
        "flip": lambda data: walker_stand(data) * (5 * clip(momentum(data) / 5) + 1) / 6,
    },
    "quadruped": {
        "stand": upright,
        "walk": lambda data: upright(data) * linear(quadruped_speed(data), 0.5, 0.5),
        "run": lambda data: upright(data) * linear(quadruped_speed(data), 5, 5),
        "jump": lambda data: upright(data) * clip(1 / 2 + data.body("torso").subtree_com[2] / 2),
    },
    "hopper": {
        "hop": lambda data: hopper_stands(data) * linear(forward_speed(data), 2, 1),
        "hop_backward": lambda data: hopper_stands(data) * clip(-forward_speed(data) / 2),
        "flip": lambda data: hopper_stands(data) * clip(momentum(data) / 5),
        "flip_backward": lambda data: hopper_stands(data) * clip(-momentum(data) / 5),
    },
}


def scatter(physics: Physics, rng: np.random.RandomState) -> None:
    """Set a random pose with random velocities."""
    with physics.reset_context():
        randomizers.randomize_limited_and_rotational_joints(physics, rng)
        qpos, qvel = physics.named.data.qpos, physics.named.data.qvel
        qvel[:] = rng.normal(size=physics.model.nv) * rng.choice([0.3, 3.0])
        if physics.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
            qpos["root"][2] = rng.uniform(-0.5, 2.0)
            qvel["root"][:3] = rng.normal(size=3) * 4
        else:
            qpos[3:] *= rng.uniform()  # a folded hopper does not stand
            qpos["rooty"] = rng.normal()
            qpos["rootz"] = rng.uniform(-1.0, 0.3)
            qvel["rootx"] = rng.uniform(-3.0, 3.0) * rng.choice([1, 3])


class TestRewards:
    @pytest.mark.slow
    @all_domains
    def test_formulas(self, domain):
        envs = {name: made(f"URLB/{domain}-{name}-v0").unwrapped.dm_env for name in FORMULAS[domain]}
        physics = next(iter(envs.values())).physics
        readings = Readings([DOMAINS[domain].reader(physics)], SIZES[domain][0])
        rng = np.random.RandomState(0)
        rewards: dict[str, list[tuple[float, float]]] = {name: [] for name in envs}
        for _ in range(1000):
            scatter(physics, rng)
            for target, source in readings.copies(0, 0):
                target[...] = source
            observation, quantities = readings.compute()
            for name, env in envs.items():
                reward = env.task.get_reward(physics)
                assert DOMAINS[domain].rewards[name](*quantities) == reward, name
                rewards[name].append((reward, FORMULAS[domain][name](physics.data.ptr)))
            parts = env.task.get_observation(physics)
            assert (observation[0] == np.concatenate([np.ravel(part) for part in parts.values()], dtype=np.float32)).all()
        for name, pairs in rewards.items():
            computed, expected = np.array(pairs).T
            assert computed == pytest.approx(expected, abs=1e-12), name
            assert computed.min() >= 0 and computed.max() <= 1, name
            assert np.ptp(computed) > 0.8, name
            assert np.mean((computed > 0.05) & (computed < 0.95)) > 0.05, name

    @vectorized_tasks("stand", "walk")
    def test_reward_of_a_step_is_that_of_its_next_state(self, env_id):
        env = made(env_id)
        env.reset(seed=1)
        formula = FORMULAS[TASKS[env_id].domain][TASKS[env_id].name]
        for action in random_actions(20, *env.action_space.shape):
            reward = env.step(action)[1]
            assert reward == pytest.approx(formula(env.unwrapped.dm_env.physics.data.ptr), abs=1e-12)

    def test_jaco(self):
        env = made(JACO)
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        rewards, expected = [], []
        for action in random_actions(50, 9):
            reward = env.step(action)[1]
            task, physics = env.unwrapped.dm_env.task, env.unwrapped.dm_env.physics
            model, data = physics.model.ptr, physics.data.ptr
            hand, brick = data.site("jaco_arm/jaco_hand/pinchsite").xpos, data.body("duplo2x4/").xpos
            rewards.append(reward)
            expected.append(gaussian((np.linalg.norm(hand - brick) - 0.05) / 0.05))
            # Random actions do not reach the brick, so it is moved near the hand.
            direction = rng.normal(size=3)
            distance = rng.uniform(0, 0.15)
            before = data.qpos.copy()
            first = model.jnt_qposadr[model.body("duplo2x4/").jntadr[0]]
            data.qpos[first : first + 3] = hand + distance * direction / np.linalg.norm(direction)
            mujoco.mj_forward(model, data)
            rewards.append(task.get_reward(physics))
            expected.append(gaussian((distance - 0.05) / 0.05))
            data.qpos[:] = before
            mujoco.mj_forward(model, data)
        assert rewards == pytest.approx(expected, abs=1e-9)
        assert min(rewards) < 0.01 and max(rewards) == 1.0

    @pytest.mark.parametrize("env_id", ["URLB/walker-flip-v0", "URLB/hopper-flip-v0"])
    def test_angular_momentum_is_that_of_all_bodies(self, env_id):
        physics = made(env_id).unwrapped.dm_env.physics
        model, data = physics.model.ptr, physics.data.ptr
        rng = np.random.RandomState(0)
        for _ in range(20):
            scatter(physics, rng)
            masses, velocity, spin = model.body_mass[1:, None], np.zeros(6), np.zeros(3)
            velocities = np.zeros((model.nbody, 3))
            for body in range(1, model.nbody):
                mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
                velocities[body] = velocity[3:]
                axes = data.ximat[body].reshape(3, 3)
                spin += axes @ (model.body_inertia[body] * (axes.T @ velocity[:3]))
            arms = data.xipos[1:] - (masses * data.xipos[1:]).sum(axis=0) / masses.sum()
            assert momentum(data) == pytest.approx((spin + np.cross(arms, masses * velocities[1:]).sum(axis=0))[1])

    @pytest.mark.parametrize("env_id", ["URLB/walker-flip-v0", "URLB/hopper-flip-v0"])
    def test_flips_are_head_first(self, env_id):
        env = made(env_id).unwrapped.dm_env
        rewards = {}
        for spin in (-4.0, 4.0):
            with env.physics.reset_context():
                env.physics.named.data.qvel["rooty"] = spin
            rewards[spin] = env.task.get_reward(env.physics)
            env.physics.step()
            assert np.sign(env.physics.named.data.xmat["torso", "xz"]) == np.sign(spin)  # the head moves forward, or backward
        assert rewards[4.0] > rewards[-4.0] + 0.1


class TestStockTasks:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("domain", "task"),
        [
            ("walker", "stand"),
            ("walker", "walk"),
            ("walker", "run"),
            ("quadruped", "walk"),
            ("quadruped", "run"),
            ("hopper", "hop"),
        ],
    )
    def test_are_dm_controls(self, domain, task):
        ours = made(f"URLB/{domain}-{task}-v0")
        theirs = suite.load(domain, task, task_kwargs={"random": 11})
        spec = theirs.action_spec()
        center, half_range = (spec.minimum + spec.maximum) / 2, (spec.maximum - spec.minimum) / 2
        assert (domain == "quadruped") == bool((half_range != 1).any())
        actions = iter(random_actions(300, *spec.shape))
        for seed, n_steps in ((11, 200), (None, 100)):
            observation, step = ours.reset(seed=seed)[0], theirs.reset()
            for _ in range(n_steps):
                parts = [np.ravel(part) for part in step.observation.values()]
                assert observation.tolist() == np.concatenate(parts).astype(np.float32).tolist()
                action = next(actions)
                observation, reward, *_ = ours.step(action)
                step = theirs.step(center + half_range * action.astype(np.float64))
                assert reward == step.reward


def make_both(env_id: str, n_envs: int, limit: int, mode: AutoresetMode) -> tuple[ControlVectorEnv, SyncVectorEnv]:
    """Make our vector env, and Gymnasium's, which steps the envs of ``gym.make`` one by one."""
    ours = gym.make_vec(env_id, num_envs=n_envs, max_episode_steps=limit, autoreset_mode=mode)
    theirs = gym.make_vec(
        env_id,
        num_envs=n_envs,
        max_episode_steps=limit,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    assert isinstance(ours, ControlVectorEnv) and isinstance(theirs, SyncVectorEnv)
    return ours, theirs


def assert_same(mine: Any, other: Any) -> None:
    """Equal to the last bit."""
    assert mine.dtype == other.dtype
    assert mine.tolist() == other.tolist()


@dataclass
class Lying:
    """Physics of a walker with a horizontal torso."""

    height: np.float64

    def torso_height(self) -> np.float64:
        return self.height

    def torso_upright(self) -> np.float64:
        return np.float64(0)


class TestRelabeling:
    """Rewards of recorded transitions against those of the environment."""

    @pytest.mark.slow
    @vectorized_tasks("jump")
    def test_recorded_states_get_the_rewards_of_the_environment(self, env_id):
        envs = gym.make_vec(env_id, 3, vectorization_mode="vector_entry_point")
        envs.reset(seed=0)
        steps = [envs.step(actions) for actions in random_actions(150, *envs.action_space.shape)]
        observations, rewards = (np.concatenate([step[i] for step in steps]) for i in (0, 1))
        assert rewards.std() > 1e-5
        for task in (envs.task, made(env_id).get_wrapper_attr("task")):
            np.testing.assert_allclose(task.compute_rewards(observations, None, observations), rewards, atol=1e-6)

    def test_of_every_pose(self):
        """Also after many turns, upside down, and in flight."""
        env = made(WALKER).unwrapped
        physics, rng = env.dm_env.physics, np.random.default_rng(0)
        observations, rewards = [], []
        for _ in range(200):
            with physics.reset_context():
                randomizers.randomize_limited_and_rotational_joints(physics, np.random.RandomState(rng.integers(1 << 30)))
                physics.named.data.qpos["rooty"] = rng.uniform(-20, 20)
                physics.named.data.qpos["rootz"] = rng.uniform(-1, 3)
                physics.named.data.qpos["rootx"] = rng.uniform(-50, 50)
                physics.data.qvel[:] = rng.normal(0, 3, 9)
            parts = env.dm_env.task.get_observation(physics)
            observations.append(env._env.flat(parts))
            rewards.append(env.dm_env.task.get_reward(physics))
        assert np.std(rewards) > 0.05
        np.testing.assert_allclose(env.task.compute_rewards(None, None, np.array(observations)), rewards, atol=1e-5)

    def test_rewards_that_observations_do_not_determine(self):
        with pytest.raises(ValueError, match="do not determine the reward of 'jump'"):
            RelabelingTask("quadruped", "jump").compute_rewards(None, None, np.zeros((2, 78)))

    def test_observations_of_another_domain(self):
        with pytest.raises(ValueError, match=r"shape \(n, 24\), got \(2, 15\)"):
            RelabelingTask("walker", "walk").compute_rewards(None, None, np.zeros((2, 15)))

    @pytest.mark.parametrize("vec_env", [SB3VecEnv, DummyVecEnv, pytest.param(SubprocVecEnv, marks=pytest.mark.slow)])
    def test_relabeling(self, vec_env):
        """Transitions of one exploration, relabeled for another task."""
        env_id = "URLB/walker-run-v0"
        if vec_env is SB3VecEnv:
            env = SB3VecEnv(gym.make_vec(env_id, num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP), 0)
        else:
            env = make_vec_env(f"sb3_exdm.envs:{env_id}", 2, seed=0, vec_env_cls=vec_env)
        observations = np.stack([env.reset()[0], env.step(np.zeros((2, 6)))[0][1]])
        blank = {
            "observations": observations,
            "actions": np.zeros((2, 6), np.float32),
            "next_observations": observations,
            **{key: np.array([False, True]) for key in ("terminated", "truncated")},
        }
        blank["terminated"][:] = False
        try:
            relabeled = relabel(blank, env)
        finally:
            env.close()
        expected = RelabelingTask("walker", "run").compute_rewards(None, None, observations)
        np.testing.assert_allclose(relabeled["rewards"], expected, rtol=1e-6)
        assert relabeled["truncated"].tolist() == [False, True] and not relabeled["terminated"].any()

    def test_jaco_has_no_rewards_of_recorded_transitions(self):
        """Its observations contain the brick of the explored task."""
        with pytest.raises(ValueError, match="no attribute `task`"):
            relabel(
                {key: np.zeros((2, 1)) for key in ("observations", "next_observations", "actions")}
                | {key: np.zeros(2, bool) for key in ("terminated", "truncated")},
                DummyVecEnv([lambda: made(JACO)]),
            )


class TestVectorEnv:
    @pytest.mark.slow
    @vectorized_tasks()
    def test_is_many_of_the_single_env(self, env_id):
        ours, theirs = make_both(env_id, 2, 15, AutoresetMode.SAME_STEP)
        assert_same(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
        for step, actions in enumerate(random_actions(40, *ours.action_space.shape), start=1):
            (*arrays, infos), (*arrays_, infos_) = ours.step(actions), theirs.step(actions)
            for mine, other in zip(arrays, arrays_, strict=True):
                assert_same(mine, other)
            assert ("final_obs" in infos) == ("final_obs" in infos_) == (step % 15 == 0)
            if "final_obs" in infos:
                assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, True]
                for mine, other in zip(infos["final_obs"], infos_["final_obs"], strict=True):
                    assert_same(mine, other)

    @pytest.mark.slow
    @all_modes
    def test_episodes_that_end_one_by_one(self, mode):
        ours, theirs = make_both(WALKER, 3, 10, mode)
        assert_same(ours.reset(seed=[5, 8, 5])[0], theirs.reset(seed=[5, 8, 5])[0])
        n_ends = np.zeros(3, dtype=int)
        for step, actions in enumerate(random_actions(45, *ours.action_space.shape)):
            if step == 4:  # from here on the second one is out of step
                mask = np.array([False, True, False])
                first, other = (envs.reset(seed=20, options={"reset_mask": mask})[0] for envs in (ours, theirs))
                assert_same(first, other)
            (*arrays, infos), (*arrays_, infos_) = ours.step(actions), theirs.step(actions)
            for mine, other in zip(arrays, arrays_, strict=True):
                assert_same(mine, other)
            truncations = arrays[3]
            n_ends += truncations
            if not truncations.any():
                assert infos == {}
            elif mode == AutoresetMode.SAME_STEP:
                assert_same(infos["_final_obs"], truncations)
                for index, has_ended in enumerate(truncations):
                    if has_ended:
                        assert_same(infos["final_obs"][index], infos_["final_obs"][index])
                    else:
                        assert infos["final_obs"][index] is None
            elif mode == AutoresetMode.DISABLED:
                first, other = (envs.reset(options={"reset_mask": truncations.copy()})[0] for envs in (ours, theirs))
                assert_same(first, other)
        assert n_ends.tolist() == ([4, 3, 4] if mode == AutoresetMode.NEXT_STEP else [4, 4, 4])  # resets take a step

    @pytest.mark.slow
    def test_rewards_are_rounded_as_dm_control_rounds_them(self):
        # numpy rounds the squares of arrays and of numbers differently, see ``standing`` in walker.py.
        heights = np.random.default_rng(0).uniform(0.0, 1.3, 30_000)
        task = suite.load("walker", "stand").task
        rewards = DOMAINS["walker"].rewards["stand"](heights, 0.0, None, None)
        assert rewards.tolist() == [task.get_reward(Lying(height)) for height in heights]

    @pytest.mark.parametrize(("target", "margin", "lowest"), [(1.0, 0.5, 0.5), (8.0, 4.0, 0.5), (1.0, 2.0, 0.0)])
    def test_linear_tolerance_is_dm_controls(self, target, margin, lowest):
        values = np.random.default_rng(0).uniform(target - 3 * margin, target + margin, 10_000)
        values[:3] = target, target - margin, target - 2 * margin
        theirs = tolerance(values, (target, np.inf), margin, value_at_margin=lowest, sigmoid="linear")
        assert_same(linear_tolerance(values, target, margin, lowest), theirs)

    @pytest.mark.slow
    def test_same_seed_same_trajectory(self):
        first, second = (gym.make_vec(QUADRUPED, num_envs=2, max_episode_steps=8) for _ in range(2))
        assert_same(first.reset(seed=np.int64(1))[0], second.reset(seed=1)[0])
        for actions in random_actions(20, 2, 12):
            assert_same(first.step(actions)[0], second.step(actions)[0])

    @pytest.mark.slow
    def test_seeds_of_some(self):
        envs = ControlVectorEnv(3, domain="hopper", task="hop")
        before = envs.reset(seed=[1, None, 2])[0]
        after = envs.reset(seed=[1, None, 2])[0]
        assert (before == after).all(axis=1).tolist() == [True, False, True]

    @pytest.mark.slow
    def test_arguments(self):
        envs = gym.make_vec(HOPPER, num_envs=3)
        assert envs.max_episode_steps == 1000
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert envs.metadata["render_fps"] == 50
        assert envs.observation_space.shape == (3, 15)
        assert envs.single_action_space == made(HOPPER).action_space
        same_step = ControlVectorEnv(1, domain="hopper", task="hop", autoreset_mode="SameStep")
        assert same_step.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert ControlVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP

    @pytest.mark.slow
    def test_jaco_is_stepped_by_gymnasium(self):
        envs = gym.make_vec(JACO, num_envs=1)
        assert isinstance(envs, SyncVectorEnv)
        assert envs.reset(seed=0)[0].tolist() == [made(JACO).reset(seed=0)[0].tolist()]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"domain": "jaco"}, "domain 'jaco' is not vectorized; choose one of walker, quadruped, hopper"),
            ({"domain": "fish"}, "domain 'fish' is not vectorized"),
            ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None, got 'human'"),
            ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
            ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, got 0"),
            ({"autoreset_mode": "never"}, "never"),
            ({"num_threads": 0}, "num_threads must be an integer of at least 1, or None, got 0"),
            ({"num_threads": 1.5}, "num_threads must be an integer of at least 1, or None, got 1.5"),
            ({"parameter_scales": {"mass": [2.0]}}, "no parameter 'mass'; choose from body_mass, body_inertia"),
        ],
    )
    def test_bad_arguments(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ControlVectorEnv(**{"domain": "hopper", "task": "hop", **changes})


class TestThreads:
    @all_domains
    def test_do_not_change_results(self, domain):
        name = next(iter(FORMULAS[domain]))
        shared, alone = (
            ControlVectorEnv(4, 7, domain=domain, task=name, autoreset_mode=AutoresetMode.SAME_STEP, num_threads=n)
            for n in (3, 1)
        )
        assert shared.num_threads == 3 and alone.num_threads == 1
        singles = [gym.make(f"URLB/{domain}-{name}-v0", max_episode_steps=7) for _ in range(4)]
        start = [env.reset(seed=4 + i)[0] for i, env in enumerate(singles)]
        assert shared.reset(seed=4)[0].tolist() == alone.reset(seed=4)[0].tolist() == np.array(start).tolist()
        for actions in random_actions(20, *shared.action_space.shape):
            (*arrays, infos), (*arrays_, infos_) = shared.step(actions), alone.step(actions)
            for mine, other in zip(arrays, arrays_, strict=True):
                assert_same(mine, other)
            assert infos.keys() == infos_.keys()
            for i, (env, action) in enumerate(zip(singles, actions, strict=True)):
                observation, reward, _, truncated, _ = env.step(action)
                assert reward == arrays[1][i] and truncated == arrays[3][i]
                if truncated:
                    assert_same(infos["final_obs"][i], observation)
                    observation, _ = env.reset()
                assert_same(arrays[0][i], observation)

    @pytest.mark.parametrize(("n_cpus", "num_envs", "chosen"), [(1, 8, 1), (2, 8, 2), (16, 8, 4), (2, 1, 1), (2, 3, 1)])
    def test_default_number(self, monkeypatch, n_cpus, num_envs, chosen):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(n_cpus)), raising=False)
        monkeypatch.setattr(th, "get_num_threads", lambda: 64)
        assert choose_num_threads(num_envs) == chosen
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
        assert choose_num_threads(num_envs) == chosen
        monkeypatch.setattr(th, "get_num_threads", lambda: 1)  # as in runs side by side
        assert choose_num_threads(num_envs) == 1

    def test_no_more_than_envs(self):
        assert ControlVectorEnv(2, domain="hopper", task="hop", num_threads=np.int64(5)).num_threads == 2

    @pytest.mark.parametrize("unstable", [0, 3])
    def test_an_unstable_simulation(self, unstable):
        envs = ControlVectorEnv(4, domain="hopper", task="hop", num_threads=2)
        still = np.zeros((4, 4))
        envs.reset(seed=0)
        envs._envs[unstable].physics.data.qvel[:] = 1e10
        with pytest.raises(PhysicsError, match=f"sub-env {unstable} became unstable"):
            envs.step(still)
        envs.reset(seed=0)
        assert np.isfinite(envs.step(still)[0]).all()

    @pytest.mark.parametrize("num_threads", [1, 2, 4])
    def test_errors_are_raised_when_no_call_is_in_progress(self, num_threads):
        team = ThreadTeam(num_threads)
        begun, ended = [], []

        def work(item: int) -> None:
            begun.append(item)
            if item == 2:
                raise KeyError(item)
            time.sleep(0.005)
            ended.append(item)

        with pytest.raises(KeyError):
            team.run(work, range(6))
        assert sorted(begun) == sorted([*ended, 2])
        done: list[int] = []
        team.run(done.append, range(50))  # the team goes on working
        assert sorted(done) == list(range(50))
        team.close()

    def test_close_stops_them(self):
        before = threading.active_count()
        envs = ControlVectorEnv(6, domain="hopper", task="hop", num_threads=3)
        envs.reset(seed=0)
        envs.step(np.zeros((6, 4)))
        assert threading.active_count() > before
        envs.close()
        assert threading.active_count() == before
        with pytest.raises(ClosedEnvironmentError):
            envs.step(np.zeros((6, 4)))

    def test_envs_that_are_not_closed(self):
        before = threading.active_count()
        envs = ControlVectorEnv(4, domain="hopper", task="hop", num_threads=2)
        envs.reset(seed=0)
        envs.step(np.zeros((4, 4)))
        del envs
        gc.collect()
        deadline = time.monotonic() + 5.0
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before


SCALES = {
    "body_mass": 1.5,
    "body_inertia": 1.2,
    "dof_damping": 0.5,
    "geom_friction": 0.7,
    "actuator_gear": 0.8,
    "gravity": 0.6,
}


class TestParameters:
    @all_domains
    def test_are_those_of_the_single_env(self, domain):
        env_id = f"URLB/{domain}-{next(iter(FORMULAS[domain]))}-v0"
        factors = np.array([1.0, 0.8, 1.3])
        scales = {name: scale * factors for name, scale in SCALES.items()}
        envs: Any = gym.make_vec(
            env_id, num_envs=3, max_episode_steps=6, parameter_scales=scales, autoreset_mode=AutoresetMode.SAME_STEP
        )
        singles: list[Any] = [
            gym.make(env_id, max_episode_steps=6, parameter_scales={name: value[i] for name, value in scales.items()})
            for i in range(3)
        ]
        observations = envs.reset(seed=0)[0]
        for i, env in enumerate(singles):
            assert_same(env.reset(seed=i)[0], observations[i])
        for step, actions in enumerate(random_actions(15, *envs.action_space.shape)):
            if step == 8:  # also within an episode
                envs.set_parameters({"dof_damping": 2 * envs.parameters["dof_damping"]})
                for env in singles:
                    env.unwrapped.set_parameters({"dof_damping": 2 * env.unwrapped.parameters["dof_damping"]})
            observations, rewards, _, truncations, _ = envs.step(actions)
            for i, env in enumerate(singles):
                observation, reward, _, truncated, _ = env.step(actions[i])
                assert reward == rewards[i] and truncated == truncations[i]
                assert_same(env.reset()[0] if truncated else observation, observations[i])
        for i, env in enumerate(singles):
            assert {name: value[i].tolist() for name, value in envs.parameters.items()} == {
                name: value.tolist() for name, value in env.unwrapped.parameters.items()
            }

    @all_domains
    def test_factors_of_one_change_nothing(self, domain):
        name = next(iter(FORMULAS[domain]))
        scaled, plain = (
            ControlVectorEnv(2, domain=domain, task=name, parameter_scales=scales)
            for scales in (dict.fromkeys(PARAMETERS, np.ones(2)), None)
        )
        assert_same(scaled.reset(seed=0)[0], plain.reset(seed=0)[0])
        for actions in random_actions(10, *plain.action_space.shape):
            assert_same(scaled.step(actions)[0], plain.step(actions)[0])
        plain.set_parameters(plain.parameters)  # in the middle of an episode
        for actions in random_actions(10, *plain.action_space.shape):
            assert_same(scaled.step(actions)[0], plain.step(actions)[0])

    def test_derived_constants_are_those_of_a_compiled_model(self):
        xml, assets = suite_walker.get_model_and_assets()
        spec = mujoco.MjSpec.from_string(xml.decode(), include=assets)
        for geom in spec.geoms:
            geom.density *= 2.0
        compiled = spec.compile()
        env: Any = ControlEnv("walker", "walk", parameter_scales={"body_mass": 2.0, "body_inertia": 2.0})
        model = env.dm_env.physics.model
        for name in ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"):
            np.testing.assert_allclose(getattr(model, name), getattr(compiled, name), rtol=1e-12)

    def test_gravity_acts_at_once(self):
        env: Any = ControlEnv("walker", "walk")
        env.reset(seed=0)
        data = env.dm_env.physics.data
        data.qpos[:], data.qvel[:] = 0.0, 0.0
        data.qpos[env.dm_env.physics.model.name2id("rootz", "joint")] = 5.0  # in the air
        env.set_parameters({"gravity": [0.0, 0.0, -1.0]})
        env.step(np.zeros(6))
        center = env.dm_env.physics.named.data.sensordata["torso_subtreelinvel"]
        assert center[2] == pytest.approx(-0.025, rel=0.01)

    def test_shapes_of_factors(self):
        table = ParameterTable([DOMAINS["hopper"].make("hop").physics for _ in range(2)])
        before = table.read()
        shape = before["geom_friction"].shape
        for factors in (np.array([1.0, 2.0]), np.full(shape[:2], 2.0), np.full(shape, 3.0)):
            table.scale({"geom_friction": factors})
            expected = before["geom_friction"] * factors.reshape(factors.shape + (1,) * (3 - factors.ndim))
            assert_same(table.read()["geom_friction"], expected)
            table.set(before)
        for bad in (2.0, np.ones(3), np.ones((2, shape[1] + 1)), np.ones((*shape, 1))):
            with pytest.raises(ValueError, match=rf"Factors of geom_friction must have the shape \(2, {shape[1]}, 3\)"):
                table.scale({"geom_friction": bad})

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("mass", 1.0, "There is no parameter 'mass'; choose from body_mass"),
            ("gravity", np.nan, "gravity must be finite"),
            ("dof_damping", -1.0, "dof_damping must not be negative, got -1"),
            ("body_mass", 0.0, "body_mass must be positive for all bodies but the world"),
            ("jnt_stiffness", None, r"jnt_stiffness must have the shape \(2, 7\), got \(2,\)"),
        ],
    )
    def test_bad_values(self, envs, name, change, message):
        before = envs.parameters
        values = np.ones(2) if change is None else np.full(before.get(name, np.ones(2)).shape, change)
        with pytest.raises(ValueError, match=message):
            envs.set_parameters({"dof_armature": 2 * before["dof_armature"], name: values})
        for key, value in envs.parameters.items():
            assert_same(value, before[key])

    def test_copies_and_the_jaco(self):
        env: Any = gym.make(HOPPER, parameter_scales={"body_mass": 1.5})
        copied: Any = pickle.loads(pickle.dumps(env.unwrapped))
        assert_same(copied.parameters["body_mass"], env.unwrapped.parameters["body_mass"])
        read = env.unwrapped.parameters["body_mass"]
        read[:] = 100.0
        assert_same(copied.parameters["body_mass"], env.unwrapped.parameters["body_mass"])
        with pytest.raises(ValueError, match="parameters of the jaco are fixed"):
            made(JACO).unwrapped.set_parameters({"body_mass": 1.0})


@pytest.fixture(scope="class")
def envs() -> ControlVectorEnv:
    envs = ControlVectorEnv(2, domain="hopper", task="hop")
    envs.reset(seed=0)
    return envs


class TestVectorEnvMisuse:
    @pytest.mark.parametrize(
        "actions", [np.zeros(4), np.zeros((3, 4)), np.zeros((2, 3)), np.full((2, 4), np.nan), np.full((2, 4), np.inf)]
    )
    def test_bad_actions(self, envs, actions):
        with pytest.raises(ValueError, match=r"finite actions of shape \(2, 4\)"):
            envs.step(actions)

    @pytest.mark.parametrize(
        "mask", [np.array([1, 0]), np.array([True]), np.array([False, False]), np.ones((2, 1), dtype=bool), [0.0, 1.0]]
    )
    def test_bad_masks(self, envs, mask):
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options={"reset_mask": mask})

    def test_bad_seeds(self, envs):
        with pytest.raises(ValueError, match="Expected 2 seeds, got 3"):
            envs.reset(seed=[1, 2, 3])

    def test_steps_before_resets(self):
        envs = ControlVectorEnv(2, 3, domain="hopper", task="hop", autoreset_mode=AutoresetMode.DISABLED)
        with pytest.raises(ResetNeeded, match="before step"):
            envs.step(np.zeros((2, 4)))
        with pytest.raises(ResetNeeded, match="of all envs"):
            envs.reset(options={"reset_mask": np.array([True, False])})
        envs.reset(seed=0)
        envs.step(np.zeros((2, 4)))
        envs.reset(options={"reset_mask": np.array([True, False])})
        for _ in range(2):
            truncations = envs.step(np.zeros((2, 4)))[3]
        assert truncations.tolist() == [False, True]
        with pytest.raises(ResetNeeded, match=r"envs \[1\] ended"):
            envs.step(np.zeros((2, 4)))

    def test_results_are_not_the_state(self, envs):
        observations = envs.reset(seed=0)[0]
        before = observations.copy()
        observations[:] = 100.0
        envs.step(np.zeros((2, 4)))[0][:] = 100.0
        assert_same(envs.reset(seed=0)[0], before)

    @pytest.mark.slow
    @all_domains
    def test_an_unstable_simulation(self, domain):
        name = next(iter(FORMULAS[domain]))
        envs = ControlVectorEnv(3, domain=domain, task=name)
        still = np.zeros(envs.action_space.shape)
        for _ in range(2):  # also after a reset
            envs.reset(seed=0)
            envs.step(still)
            envs._envs[1].physics.data.qvel[:] = 1e10
            with pytest.raises(PhysicsError, match="sub-env 1 became unstable"):
                envs.step(still)
        envs.reset(options={"reset_mask": np.array([False, True, False])})
        assert np.isfinite(envs.step(still)[0]).all()

    def test_episodes_that_ended_are_not_stepped(self):
        envs = ControlVectorEnv(2, 2, domain="hopper", task="hop")
        envs.reset(seed=0)
        for _ in range(2):
            envs.step(np.zeros((2, 4)))
        envs._envs[0].physics.data.qvel[:] = 1e10
        observations, rewards, *_ = envs.step(np.zeros((2, 4)))
        assert np.isfinite(observations).all()
        assert rewards.tolist() == [0.0, 0.0]


class TestSB3VecEnv:
    def make(self, n_envs: int, limit: int = 12, seed: int | None = None, **kwargs: Any) -> SB3VecEnv:
        vector_env = gym.make_vec(
            HOPPER, num_envs=n_envs, max_episode_steps=limit, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs
        )
        return SB3VecEnv(vector_env, seed)

    @pytest.mark.slow
    def test_contract_against_dummy_vec_env(self):
        ours = self.make(3, seed=7)
        theirs = DummyVecEnv([lambda: Monitor(gym.make(HOPPER, max_episode_steps=12))] * 3)
        theirs.seed(7)
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert_same(ours.reset(), theirs.reset())
        for step, actions in enumerate(random_actions(40, 3, 4), start=1):
            (*arrays, infos), (*arrays_, infos_) = ours.step(actions), theirs.step(actions)
            for mine, other in zip(arrays, arrays_, strict=True):
                assert_same(mine, other)
            assert arrays[2].tolist() == [step % 12 == 0] * 3
            for info, info_ in zip(infos, infos_, strict=True):
                assert set(info) == set(info_)
                assert info["TimeLimit.truncated"] == info_["TimeLimit.truncated"] == (step % 12 == 0)
                if step % 12 == 0:
                    assert_same(info["terminal_observation"], info_["terminal_observation"])
                    assert info["episode"]["r"] == pytest.approx(info_["episode"]["r"], abs=1e-6)
                    assert info["episode"]["l"] == info_["episode"]["l"] == 12
                    assert info["episode"]["t"] >= 0
        assert ours.reset_infos == theirs.reset_infos == [{}] * 3

    @pytest.mark.slow
    def test_seed(self):
        first, second = self.make(2, seed=1), self.make(2)
        second.seed(1)
        assert_same(first.reset(), second.reset())
        assert_same(first.reset(), second.reset())
        second.seed(2)
        assert first.reset().tolist() != second.reset().tolist()

    @pytest.mark.slow
    def test_attributes(self):
        vec_env = self.make(3, seed=0)
        vec_env.reset()
        assert vec_env.get_attr("max_episode_steps", indices=[0, 2]) == [12, 12]
        assert vec_env.get_attr("observation_space") == [vec_env.observation_space] * 3
        assert vec_env.env_method("get_wrapper_attr", "max_episode_steps", indices=1) == [12]
        assert vec_env.env_method("get_wrapper_attr", name="render_mode") == [None] * 3
        assert vec_env.has_attr("max_episode_steps") and not vec_env.has_attr("no_such_thing")
        assert vec_env.env_is_wrapped(Monitor) == [True] * 3
        assert vec_env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
        vec_env.set_attr("max_episode_steps", 2)
        assert vec_env.step(np.zeros((3, 4)))[2].tolist() == [False] * 3
        assert vec_env.step(np.zeros((3, 4)))[2].tolist() == [True] * 3
        with pytest.raises(ValueError, match="share"):
            vec_env.set_attr("max_episode_steps", 3, indices=0)
        with pytest.raises(AttributeError, match="no method 'reset'"):
            vec_env.env_method("reset")
        vec_env.close()

    def test_options_are_refused(self):
        vec_env = self.make(2)
        vec_env.set_options({"posture": "upright"})
        with pytest.raises(ValueError, match="ControlVectorEnv takes no options"):
            vec_env.reset()

    def test_other_autoreset_modes_are_refused(self):
        with pytest.raises(ValueError, match="autoreset mode SAME_STEP"):
            SB3VecEnv(ControlVectorEnv(1, domain="hopper", task="hop"))

    @pytest.mark.slow
    def test_sb3_trains_and_logs(self):
        vec_env = self.make(4, limit=16, seed=0)
        model = PPO("MlpPolicy", vec_env, n_steps=32, batch_size=64, n_epochs=1, policy_kwargs={"net_arch": [8]}, device="cpu")
        model.learn(128)
        assert [info["l"] for info in model.ep_info_buffer] == [16] * 8


@pytest.fixture(scope="module")
def opengl() -> None:
    env = ControlEnv("hopper", "hop", "rgb_array")
    env.reset(seed=0)
    try:
        env.render()
    except ImportError as error:
        pytest.skip(str(error))
    finally:
        env.close()


def assert_is_image(image: np.ndarray, shape: tuple[int, int]) -> None:
    assert image.shape == (*shape, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("opengl")
class TestRendering:
    @pytest.mark.slow
    @one_of_each_domain
    def test_images(self, env_id):
        env = gym.make(env_id, render_mode="rgb_array", width=64, height=48)
        env.reset(seed=0)
        first = env.render()
        assert_is_image(first, (48, 64))
        for action in random_actions(10, *env.action_space.shape):
            env.step(action)
        assert (env.render() != first).any()
        assert env.metadata["render_fps"] == {WALKER: 40, JACO: 25}.get(env_id, 50)
        env.close()

    @pytest.mark.slow
    def test_size_and_camera(self):
        side, back = (ControlEnv("walker", "walk", "rgb_array", camera_id=camera) for camera in ("side", "back"))
        for env in (side, back):
            env.reset(seed=0)
        assert_is_image(side.render(), (240, 320))
        assert (side.render() != back.render()).any()

    @pytest.mark.slow
    def test_vector_env_renders_one_image_per_sub_env(self):
        arguments = {"render_mode": "rgb_array", "width": 64, "height": 48}
        envs = gym.make_vec(HOPPER, num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP, **arguments)
        envs.reset(seed=0)
        images = envs.render()
        assert len(images) == 2
        single = gym.make(HOPPER, **arguments)
        for seed, image in enumerate(images):
            assert_is_image(image, (48, 64))
            single.reset(seed=seed)
            assert (single.render() == image).all()
        vec_env = SB3VecEnv(envs)
        assert [image.tolist() for image in vec_env.get_images()] == [image.tolist() for image in images]
        vec_env.close()

    @pytest.mark.slow
    def test_rendering_does_not_disturb(self):
        envs, twins = (ControlVectorEnv(1, domain="hopper", task="hop", render_mode="rgb_array") for _ in range(2))
        envs.reset(seed=0)
        twins.reset(seed=0)
        for actions in random_actions(5, 1, 4):
            envs.render()
            assert_same(envs.step(actions)[0], twins.step(actions)[0])


class TestRenderingWithoutOpenGL:
    def test_error(self, monkeypatch):
        def render(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("No OpenGL rendering backend is available.")

        monkeypatch.setattr(Physics, "render", render)
        for make in (gym.make, gym.make_vec):
            env = make(HOPPER, render_mode="rgb_array")
            env.reset(seed=0)
            with pytest.raises(ImportError, match="no OpenGL to render with: set MUJOCO_GL=egl") as caught:
                env.render()
            assert "\n" not in str(caught.value)

    def test_without_render_mode(self):
        envs = ControlVectorEnv(1, domain="hopper", task="hop")
        envs.reset(seed=0)
        with pytest.warns(UserWarning, match="render_mode"):
            assert envs.render() is None
        assert ControlEnv("hopper", "hop").render() is None
