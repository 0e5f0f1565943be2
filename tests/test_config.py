"""Configurations, profiles and environments of runs: what they accept, and how they refuse."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from torch import nn

import sb3_exdm
from sb3_exdm import EnvFactory, FinetuneConfig, PretrainConfig, register_env_factory
from sb3_exdm.common.validation import check_kwargs, is_instance
from sb3_exdm.envs import Maze2dSB3VecEnv
from sb3_exdm.recipes import resolve
from sb3_exdm.runs.envs import ENV_FACTORIES, EnvSource, env_factory
from sb3_exdm.runs.hyperparams import (
    PROFILES,
    build_algorithm,
    check_algo_kwargs,
    default_profile,
    finetune_hyperparams,
    merge,
    pretrain_hyperparams,
    to_plain,
)

MAZE = "Maze2d-SquareA-v0"
LOW_DIM = spaces.Box(-1, 1, (2,))
ROBOT = spaces.Box(-np.inf, np.inf, (24,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
ACTIONS = spaces.Box(-1, 1, (6,))


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"sed": 1}, "no setting 'sed' \\(did you mean 'seed'\\?\\)"),
            ({"seed": "one"}, "seed must be int, got 'one'"),
            ({"seed": True}, "seed must be int, got True"),
            ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
            ({"n_envs": 0}, "n_envs must be an integer of at least 1"),
            ({"action_noise": -0.1}, "action_noise must be a number of at least 0 and of at most 10"),
            ({"reward": "scor"}, "Unknown reward 'scor' \\(did you mean 'score'\\?\\)"),
            ({"algo": "dqn"}, "Unknown algo 'dqn'"),
            ({"profile": "large"}, "Unknown profile 'large'; choose one of low_dim"),
            ({"vec_env": "threads"}, "Unknown vec_env 'threads'"),
            ({"coverage_dims": "01"}, "coverage_dims must be"),
            ({"env_kwargs": [1]}, "env_kwargs must be dict"),
            ({"reward": "no_such_module:mine"}, "Cannot import the module 'no_such_module'"),
        ],
    )
    def test_refuses_unknown_and_wrongly_typed_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            PretrainConfig.make(env_id=MAZE, **settings)

    def test_survives_json(self):
        config = FinetuneConfig.make(env_id=MAZE, pretrained=Path("a/b"), env_kwargs={"goal_cell": [1, 2]}, n_eval_episodes=3)
        content = json.loads(json.dumps({"command": "finetune", "more": 1, **config.to_dict()}))
        again = FinetuneConfig.from_dict(content)
        assert again.to_dict() == config.to_dict() and config.differences(content) == []
        assert config.with_changes(seed=3, kl_steps=7).differences(content) == ["seed", "kl_steps"]

    def test_what_json_cannot_hold_is_refused(self):
        with pytest.raises(ValueError, match="env_kwargs must be plain data"):
            PretrainConfig.make(env_id=MAZE, env_kwargs={"layout": np.ones(2)}).to_dict()

    def test_a_foreign_configuration_imports_no_module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "planted.py").write_text("raise SystemExit('executed')")
        with pytest.raises(ValueError, match="Unknown reward 'planted:score'"):
            PretrainConfig.from_dict({"env_id": MAZE, "reward": "planted:score"})

    def test_resolving_twice_changes_nothing(self):
        for config in (PretrainConfig.make(env_id=MAZE), FinetuneConfig.make(env_id=MAZE, policy="gaussian")):
            once = resolve(config)
            assert once.profile == "low_dim" and resolve(once) == once

    def test_rewards_are_not_skewed_in_low_dimension_unless_asked(self):
        assert resolve(PretrainConfig.make(env_id=MAZE)).reward_transform == "identity"
        assert resolve(PretrainConfig.make(env_id=MAZE, reward_transform="exp")).reward_transform == "exp"
        assert resolve(PretrainConfig.make(env_id=MAZE, profile="proprioceptive")).reward_transform is None


class TestKwargs:
    def test_nearest_argument_and_types(self):
        def function(n_steps: int, rate: float = 1.0, names: list[str] | None = None) -> None: ...

        check_kwargs(function, {"n_steps": 3, "rate": 2, "names": ["a"]}, "kwargs")
        with pytest.raises(ValueError, match="kwargs has no 'n_step' \\(did you mean 'n_steps'\\?\\)"):
            check_kwargs(function, {"n_step": 3}, "kwargs")
        with pytest.raises(ValueError, match="kwargs\\['rate'\\] must be float, got 'fast'"):
            check_kwargs(function, {"rate": "fast"}, "kwargs")
        with pytest.raises(ValueError, match="must be list\\[str\\] or None"):
            check_kwargs(function, {"names": [1]}, "kwargs")

    @pytest.mark.parametrize(
        ("algo_kwargs", "message"),
        [
            ({"learning_rat": 1e-3}, "algo_kwargs has no 'learning_rat' \\(did you mean 'learning_rate'\\?\\)"),
            ({"batch_size": "many"}, "algo_kwargs\\['batch_size'\\] must be int"),
            ({"policy_kwargs": {"net_arc": [8]}}, "\\['policy_kwargs'\\] has no 'net_arc' \\(did you mean 'net_arch'\\?\\)"),
            ({"seed": 3}, "has no 'seed'"),
        ],
    )
    def test_of_algorithms_and_policies(self, algo_kwargs, message):
        with pytest.raises(ValueError, match=message):
            check_algo_kwargs("sac", algo_kwargs, "MlpPolicy")

    def test_of_rewards_and_operators(self, tmp_path):
        with pytest.raises(ValueError, match="reward_kwargs has no 'n_levles' \\(did you mean 'n_levels'\\?\\)"):
            sb3_exdm.pretrain(MAZE, 100, reward_kwargs={"n_levles": 2}, out=tmp_path / "run")
        with pytest.raises(ValueError, match="operator_kwargs has no 'expectil'"):
            sb3_exdm.finetune(MAZE, 100, operator="idql", operator_kwargs={"expectil": 0.7}, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_is_instance_decides_what_it_can(self):
        assert is_instance(3, float) and not is_instance(3.0, int) and is_instance(np.int64(3), int)
        assert is_instance((1, 2), list[int]) and not is_instance(("a",), list[int])
        assert is_instance(print, "forward reference") and is_instance(None, int | None)


class TestHyperparams:
    @pytest.mark.parametrize(
        ("space", "profile"),
        [
            (LOW_DIM, "low_dim"),
            (ROBOT, "proprioceptive"),
            (spaces.Box(-1, 1, (5,)), "proprioceptive"),
            (IMAGE, "pixels"),
            (spaces.Dict({"image": IMAGE, "speed": LOW_DIM}), "pixels"),
            (spaces.Discrete(3), "proprioceptive"),
        ],
    )
    def test_profile_is_chosen_from_the_observation_space(self, space, profile):
        assert default_profile(space) == profile and profile in PROFILES

    def test_changes_are_merged_deeply(self):
        defaults = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
        merged = merge(defaults, {"a": {"c": {"d": 3}}, "e": [4]})
        assert merged == {"a": {"b": 1, "c": {"d": 3}}, "e": [4]} and defaults["a"]["c"]["d"] == 2

    def test_a_changed_network_keeps_the_other_policy_kwargs(self):
        """Changing ``net_arch`` alone used to drop the Fourier features and the number of critics."""
        config = resolve(PretrainConfig.make(env_id=MAZE, algo_kwargs={"policy_kwargs": {"net_arch": [8]}}))
        expected = {"net_arch": [8], "features_extractor_class": "FourierExtractor", "n_critics": 1}
        assert config.algo_kwargs["policy_kwargs"] == expected
        config = resolve(FinetuneConfig.make(env_id=MAZE, policy="gaussian", algo_kwargs={"policy_kwargs": {"net_arch": [8]}}))
        assert config.algo_kwargs["policy_kwargs"] == {**expected, "n_critics": 2}

    def test_target_entropy_is_higher_than_usual_in_any_dimension(self):
        for dim in (1, 6):
            hyperparams = pretrain_hyperparams("sac", "proprioceptive", ROBOT, spaces.Box(-1, 1, (dim,)))
            assert hyperparams["target_entropy"] == 0.25 * dim

    def test_fine_tuning_keeps_the_networks_that_explored(self):
        explored = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [7], "n_critics": 1}, "learning_rate": 1.0}
        hyperparams = finetune_hyperparams("sac", "low_dim", LOW_DIM, ACTIONS, 8, explored)
        assert hyperparams["policy_kwargs"] == {"net_arch": [7], "n_critics": 2}
        assert hyperparams["learning_rate"] == 1e-3 and hyperparams["gradient_steps"] == 2

    def test_classes_travel_as_names(self):
        settings = {"policy_kwargs": {"activation_fn": nn.Tanh, "net_arch": [8]}}
        assert to_plain(settings) == {"policy_kwargs": {"activation_fn": "Tanh", "net_arch": [8]}}
        model = build_algorithm("sac", Maze2dSB3VecEnv("SquareA", 1), {"policy": "MlpPolicy", **to_plain(settings)})
        assert isinstance(model.actor.latent_pi[1], nn.Tanh)


class Corridor(gym.Env):
    """A corridor of a length to choose."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, length: float = 1.0, render_mode: str | None = None) -> None:
        self.length, self.render_mode = length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps, self._x = 0, np.zeros(1, dtype=np.float32)
        return self._x, {}

    def step(self, action):
        self._steps += 1
        self._x = np.clip(self._x + 0.1 * action / self.length, -1, 1).astype(np.float32)
        return self._x, float(self._x[0] > 0.2), False, self._steps == 10, {}


class TestEnvSource:
    def test_id_spec_class_and_function(self):
        gym.register("Corridor-v0", Corridor)
        try:
            spec = gym.spec("Corridor-v0")
            for env, name in ((MAZE, MAZE), ("Corridor-v0", "Corridor-v0"), (spec, "Corridor-v0"), (Corridor, "Corridor")):
                source = EnvSource.of(env)
                assert source.id == name and source.make_vec(2, 0).num_envs == 2
            source = EnvSource.of(lambda length: Corridor(length))
            assert source.make_vec(1, 0, {"length": 3.0}).get_attr("length") == [3.0]
        finally:
            del gym.registry["Corridor-v0"]

    def test_module_of_the_working_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
        (tmp_path / "my_corridor.py").write_text(
            "import gymnasium as gym\n"
            "from gymnasium.envs.classic_control import Continuous_MountainCarEnv\n"
            "gym.register('MyCar-v0', Continuous_MountainCarEnv, max_episode_steps=20)\n"
        )
        try:
            source = EnvSource.of("my_corridor:MyCar-v0")
            assert (source.id, source.module, source.max_episode_steps()) == ("MyCar-v0", "my_corridor", 20)
            for vec_env in ("auto", "dummy"):
                assert source.make_vec(2, 0, vec_env=vec_env).num_envs == 2
        finally:
            gym.registry.pop("MyCar-v0", None)
            sys.modules.pop("my_corridor", None)

    def test_environments_of_shimmy_are_flat(self):
        pytest.importorskip("dm_control")
        env = EnvSource.of("dm_control/cheetah-run-v0").make_vec(1, 0)
        assert env.observation_space.shape == (17,) and env.action_space.shape == (6,)

    @pytest.mark.parametrize(
        ("env", "error", "message"),
        [
            ("Maze2d-SquarA-v0", ValueError, "did you mean 'Maze2d-SquareA-v0'"),
            ("nowhere:Nothing-v0", ValueError, "Cannot import the module 'nowhere'"),
            (Corridor(), TypeError, "several copies are made of it"),
            (3, TypeError, "must be an id"),
        ],
    )
    def test_refusals(self, env, error, message):
        with pytest.raises(error, match=message):
            EnvSource.of(env)

    @pytest.mark.parametrize(
        ("vec_env", "kind"),
        [("auto", Maze2dSB3VecEnv), ("dummy", DummyVecEnv), pytest.param("subproc", SubprocVecEnv, marks=pytest.mark.slow)],
    )
    def test_a_maze_has_state_coverage_however_it_is_stepped(self, vec_env, kind):
        kwargs = {"vec_env": vec_env, "n_envs": 2, "policy_steps": 0, "progress_bar": False}
        run = sb3_exdm.pretrain(MAZE, 64, reward="zero", **kwargs)
        assert isinstance(run.model.get_env(), kind)
        assert 0 < run.summary["coverage"] == run.summary["coverage_of_ceiling"] < 1

    def test_a_factory_of_the_user(self):
        @register_env_factory("Corridor")
        class CorridorFactory(EnvFactory):
            def coverage_dims(self, env_id):
                return [0]

            def expert_return(self, env_id):
                return 5.0

        gym.register("Corridor-v0", Corridor)
        try:
            assert env_factory("Corridor-v0").expert_return("Corridor-v0") == 5.0
            assert env_factory("Pendulum-v1").expert_return("Pendulum-v1") is None
            evaluation = sb3_exdm.finetune("Corridor-v0", 16, policy="gaussian", n_eval_episodes=2, progress_bar=False).summary
            assert evaluation["normalized_score"] == pytest.approx(evaluation["mean_reward"] / 5.0)
        finally:
            ENV_FACTORIES.unregister("Corridor")
            del gym.registry["Corridor-v0"]
