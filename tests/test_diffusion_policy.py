"""The policy that denoises: how it acts, what it refuses, and that everything of it survives a file."""

from itertools import permutations

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from sb3_exdm import DiffusionActor, DiffusionFinetuneCallback, DiffusionPolicy, DiffusionTD3Policy
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.policies.diffusion_policy import ActionSelection, ExplorationState, _fixed_noise, saved_network_kwargs

OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(np.array([-3.0, 10.0], np.float32), np.array([1.0, 30.0], np.float32))
SMALL = {"net_arch": [16], "diffusion_arch": [8], "n_critics": 3, "n_sampling_steps": 3}
ALGORITHMS = (SAC, TD3, DDPG)


class Spaces(gym.Env):
    """Given spaces, reward for large actions, five steps an episode."""

    def __init__(self, observation_space: spaces.Space = OBSERVATION, action_space: spaces.Space = ACTION) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.n_steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.n_steps == 5, False, {}


def observations(n: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def make_model(algorithm=SAC, *, n_envs: int = 1, policy_kwargs: dict | None = None, **kwargs):
    env = DummyVecEnv([Spaces] * n_envs)
    settings = {"learning_starts": 10, "batch_size": 8, "buffer_size": 500, "seed": 0, "device": "cpu", **kwargs}
    return algorithm("DiffusionPolicy", env, policy_kwargs={**SMALL, **(policy_kwargs or {})}, **settings)


def make_actor(seed: int = 0, **kwargs) -> DiffusionActor:
    """A policy with the moments of some data, and weights that are not those of its initialization."""
    actor = DiffusionActor(OBSERVATION, ACTION, seed=seed, **{"net_arch": [12, 12], **kwargs})
    actor.fit(5.0 + 3.0 * observations(50), np.random.default_rng(1).uniform(ACTION.low, ACTION.high, (50, 2)), 20, 16)
    return actor


def assert_same_policy(first: DiffusionPolicy, second: DiffusionPolicy) -> None:
    """Same weights, and the same future: generators too."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, th.Tensor):
            assert th.equal(value, theirs[key]), key
    obs = observations()
    for deterministic in (True, False, False):
        np.testing.assert_array_equal(
            first.predict(obs, deterministic=deterministic)[0], second.predict(obs, deterministic=deterministic)[0]
        )


def test_importing_the_package_registers_the_name():
    assert SAC.policy_aliases["DiffusionPolicy"] is DiffusionPolicy
    assert TD3.policy_aliases["DiffusionPolicy"] is DDPG.policy_aliases["DiffusionPolicy"] is DiffusionTD3Policy


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_predictions(algorithm):
    model = make_model(algorithm)
    assert isinstance(model.policy, DiffusionPolicy if algorithm is SAC else DiffusionTD3Policy)
    obs = observations(40)
    batch, state = model.predict(obs, deterministic=True)
    assert batch.shape == (40, 2) and batch.dtype == ACTION.dtype and state is None
    np.testing.assert_array_equal(batch, model.predict(obs, deterministic=True)[0])
    np.testing.assert_allclose(model.predict(obs[7], deterministic=True)[0], batch[7], rtol=1e-4)
    samples = np.concatenate([model.predict(obs)[0] for _ in range(5)])
    assert len(np.unique(samples, axis=0)) == 200
    assert (samples >= ACTION.low).all() and (samples <= ACTION.high).all()
    assert (np.ptp(samples, axis=0) > 0.5 * (ACTION.high - ACTION.low)).all(), "in the units of the environment"


def test_observations_and_actions_of_any_vector_shape():
    shapes = spaces.Box(-1, 1, (2, 3)), spaces.Box(-2, 2, (2, 2))
    model = SAC("DiffusionPolicy", Spaces(*shapes), policy_kwargs=SMALL, device="cpu")
    obs = np.zeros((4, 2, 3), np.float32)
    assert model.predict(obs)[0].shape == (4, 2, 2) and model.predict(obs[0])[0].shape == (2, 2)
    actor = DiffusionActor(*shapes, net_arch=[8])
    assert actor.predict(obs).shape == (4, 2, 2) and actor.predict(obs[0]).shape == (2, 2)


def test_seed_decides():
    same, again, other = (make_model(seed=seed).predict(observations())[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("trained", [False, True])
def test_save_and_load(algorithm, trained, tmp_path):
    model = make_model(algorithm)
    if trained:
        model.learn(20, callback=DiffusionFinetuneCallback())
        assert model._n_updates == 10
    model.predict(observations())
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert_same_policy(model.policy, loaded.policy)
    ours, theirs = model.policy.critic.optimizer.state_dict(), loaded.policy.critic.optimizer.state_dict()
    assert len(ours["state"]) == (4 if trained else 0) == len(theirs["state"])
    for key, state in ours["state"].items():
        assert all(th.equal(value, theirs["state"][key][name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trained_model_loads_where_the_pretrained_policy_is_not(algorithm, tmp_path):
    """Also though the networks that were pre-trained have other shapes than those that the arguments ask for."""
    make_actor(n_sampling_steps=4, grid="time").save(tmp_path / "policy.safetensors")
    model = make_model(algorithm, policy_kwargs={"pretrained": tmp_path, "n_sampling_steps": None, "diffusion_arch": None})
    model.learn(20, callback=DiffusionFinetuneCallback("dql"))
    model.save(tmp_path / "model")
    (tmp_path / "policy.safetensors").unlink()
    loaded = algorithm.load(tmp_path / "model", env=DummyVecEnv([Spaces]), device="cpu")
    assert_same_policy(model.policy, loaded.policy)
    assert loaded.policy.n_sampling_steps == 4
    assert loaded.actor is loaded.policy.actor and loaded.critic is loaded.policy.critic
    assert loaded.actor.optimizer.state_dict()["state"], "the optimizer is the one of the actor that acts"
    loaded.learn(20, callback=DiffusionFinetuneCallback("dql"))
    loaded.save(tmp_path / "again")
    assert_same_policy(loaded.policy, algorithm.load(tmp_path / "again", device="cpu").policy)


def test_arguments_of_the_networks_are_explicit(tmp_path):
    """Those of the pre-trained policy, with what may be changed; a policy of these arguments takes the weights."""
    make_actor(grid="time", frequencies=(1.0, 2.0)).save(tmp_path / "policy.safetensors")
    given = {"pretrained": tmp_path, "net_arch": {"pi": [8], "qf": [16, 4]}, "n_sampling_steps": 7, "diffusion_arch": None}
    policy = make_model(policy_kwargs=given).policy
    expected = {
        "net_arch": {"pi": [8], "qf": [16, 4]},
        "diffusion_arch": [12, 12],
        "n_critics": 3,
        "n_sampling_steps": 7,
        "grid": "time",
        "frequencies": [1.0, 2.0],
        "n_frequencies": 0,
    }
    assert policy.network_kwargs == saved_network_kwargs(policy.state_dict()) == expected
    again = make_model(policy_kwargs=expected).policy
    again.load_state_dict(policy.state_dict())
    assert_same_policy(policy, again)
    other = make_model(policy_kwargs={**expected, "grid": "log_snr"}).policy
    with pytest.raises(ValueError, match=r"built with \{'grid': 'time'\}, these with \{'grid': 'log_snr'\}.*policy_kwargs"):
        other.load_state_dict(policy.state_dict())


@pytest.mark.slow
def test_policy_alone_survives_a_file(tmp_path):
    make_actor().save(tmp_path / "policy.safetensors")
    for model in (make_model(), make_model(TD3, policy_kwargs={"pretrained": tmp_path})):
        model.learn(20, callback=DiffusionFinetuneCallback())
        model.policy.save(tmp_path / "policy.zip")
        assert_same_policy(model.policy, type(model.policy).load(tmp_path / "policy.zip", device="cpu"))


def test_weights_go_from_model_to_model():
    first, second = make_model(seed=0), make_model(seed=1)
    first.learn(20, callback=DiffusionFinetuneCallback())
    second.set_parameters(first.get_parameters(), device="cpu")
    assert_same_policy(first.policy, second.policy)


def test_pretrained_policy_acts_in_the_algorithm_as_it_does_alone(tmp_path):
    actor = make_actor()
    actor.save(tmp_path / "behavior.safetensors")
    policy = make_model(policy_kwargs={"pretrained": tmp_path / "behavior.safetensors", "n_sampling_steps": None}).policy
    obs = 5.0 + 3.0 * observations()
    np.testing.assert_allclose(policy.predict(obs, deterministic=True)[0], actor.predict(obs, deterministic=True), rtol=1e-5)
    with th.no_grad():
        features, noise = policy.features(th.as_tensor(obs)), th.zeros(len(obs), 2)
        sample = policy.actor.sample_actions
        assert th.equal(sample(features, 1, noise), sample(features, 1, noise, policy.behavior))


class TestDiffusionActor:
    def test_save_and_load(self, tmp_path):
        actor = make_actor(n_sampling_steps=3)
        actor.predict(observations())
        actor.save(tmp_path / "there" / "policy.safetensors")
        for path in (tmp_path / "there" / "policy.safetensors", tmp_path / "there"):
            loaded = DiffusionActor.load(path, device="cpu")
            generator = actor.model.generator.get_state()
            for deterministic in (True, False, False):
                expected = actor.predict(observations(), deterministic)
                np.testing.assert_array_equal(loaded.predict(observations(), deterministic), expected)
            actor.model.generator.set_state(generator)
        assert loaded.config == actor.config and loaded.action_space == ACTION
        data = observations(), np.tile(ACTION.low, (6, 1))
        assert loaded.fit(*data, 5, 4) == actor.fit(*data, 5, 4), "fitting goes on as if nothing had happened"

    def test_single_and_batched_predictions(self):
        actor, obs = make_actor(), observations()
        batch = actor.predict(obs, deterministic=True)
        assert batch.shape == (6, 2) and batch.dtype == ACTION.dtype
        np.testing.assert_allclose(actor.predict(obs[2], deterministic=True), batch[2], rtol=1e-4)
        np.testing.assert_array_equal(batch, actor.predict(obs, deterministic=True))
        assert not np.array_equal(actor.predict(obs), actor.predict(obs))
        with pytest.raises(ValueError, match=r"\(3,\).*\(6, 4\)"):
            actor.predict(np.zeros((6, 4)))

    def test_damaged_and_foreign_files(self, tmp_path):
        path = tmp_path / "policy.safetensors"
        make_actor().save(path)
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ArtifactError, match="damaged"):
            DiffusionActor.load(path)
        path.write_text("not a policy at all")
        with pytest.raises(ArtifactError, match="damaged"):
            DiffusionActor.load(path)
        with pytest.raises(ArtifactError, match="nowhere does not exist"):
            DiffusionActor.load(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("obs", "actions", "message"),
        [
            (np.full((4, 3), np.nan), np.ones((4, 2)), "observations.*NaN"),
            (np.ones((4, 3)), np.full((4, 2), np.inf), "actions.*infinite"),
            (np.ones((4, 3)), np.ones((5, 2)), r"actions.*\(5, 2\)"),
            (np.ones((4, 2)), np.ones((4, 2)), r"observations.*\(4, 2\)"),
            (np.ones((0, 3)), np.ones((0, 2)), r"observations.*\(0, 3\)"),
        ],
    )
    def test_bad_data(self, obs, actions, message):
        with pytest.raises(ValueError, match=message):
            DiffusionActor(OBSERVATION, ACTION, net_arch=[8]).fit(obs, actions, 1)


class TestRefusals:
    def test_state_dependent_exploration(self):
        with pytest.raises(ValueError, match="use_sde"):
            make_model(use_sde=True)

    @pytest.mark.parametrize(
        ("observation_space", "message"),
        [
            (spaces.Dict(a=OBSERVATION), "FlattenObservation"),
            (spaces.Box(0, 255, (36, 36, 3), np.uint8), "no images"),
            (spaces.Discrete(4), "vectors"),
        ],
    )
    def test_observations(self, observation_space, message):
        with pytest.raises(ValueError, match=f"DiffusionPolicy.*{message}"):
            SAC("DiffusionPolicy", Spaces(observation_space), device="cpu", buffer_size=10)

    @pytest.mark.parametrize(
        ("action_space", "message"),
        [(spaces.Discrete(3), "continuous actions"), (spaces.Box(-np.inf, np.inf, (1,)), "finite bounds.*RescaleAction")],
    )
    def test_actions(self, action_space, message):
        for refuse in (
            lambda: DiffusionPolicy(OBSERVATION, action_space, lambda _: 1e-3),
            lambda: DiffusionActor(OBSERVATION, action_space),
        ):
            with pytest.raises(ValueError, match=message):
                refuse()

    def test_pretrained_policies_that_cannot_be_used(self, tmp_path):
        def construct(path) -> None:
            make_model(policy_kwargs={"pretrained": path})

        with pytest.raises(ArtifactError, match="nowhere does not exist"):
            construct(tmp_path / "nowhere")
        with pytest.raises(ArtifactError, match=r"holds no diffusion policy.*exdm clone"):
            construct(tmp_path)
        other = spaces.Box(-1, 1, (5,))
        DiffusionActor(other, ACTION, net_arch=[8]).save(tmp_path / "obs.safetensors")
        DiffusionActor(OBSERVATION, other, net_arch=[8]).save(tmp_path / "actions.safetensors")
        with pytest.raises(ValueError, match=r"pre-trained with observations .*\(5,\).*environment has"):
            construct(tmp_path / "obs.safetensors")
        with pytest.raises(ValueError, match=r"pre-trained with .* and actions .*\(5,\).*environment has"):
            construct(tmp_path / "actions.safetensors")

    @pytest.mark.slow
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_learning_without_the_callback_fails_before_the_first_step(self, algorithm):
        model = make_model(algorithm)
        for n_steps in (0, 20):
            with pytest.raises(RuntimeError, match=r"callback=sb3_exdm\.DiffusionFinetuneCallback\(\)"):
                model.learn(30, reset_num_timesteps=False)
            assert model.num_timesteps == model.replay_buffer.size() == n_steps
            model.predict(observations())
            evaluate_policy(model, DummyVecEnv([Spaces] * 2), 2, deterministic=False, warn=False)
            model.learn(20, callback=DiffusionFinetuneCallback())
        with pytest.raises(RuntimeError, match="DiffusionFinetuneCallback"):
            model.train(1)

    def test_normalized_observations(self):
        for wrap in (lambda env: env, VecMonitor):
            env = wrap(VecNormalize(DummyVecEnv([Spaces])))
            model = SAC("DiffusionPolicy", env, policy_kwargs=SMALL, device="cpu", buffer_size=10)
            with pytest.raises(ValueError, match="norm_obs=False"):
                model.learn(10, callback=DiffusionFinetuneCallback())
        env = VecNormalize(DummyVecEnv([Spaces]), norm_obs=False)
        model = SAC("DiffusionPolicy", env, policy_kwargs=SMALL, device="cpu", buffer_size=50, learning_starts=10)
        assert model.learn(20, callback=DiffusionFinetuneCallback())._n_updates == 10


class TestActing:
    """Against loops."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "rule",
        [
            ActionSelection(),
            ActionSelection(0, 5, 0),
            ActionSelection(3, 4, 2),
            ActionSelection(0, 0, 3),
            ActionSelection(0, 1, 1),
        ],
    )
    @pytest.mark.parametrize("deterministic", [True, False])
    def test_takes_the_candidate_that_the_smallest_critic_values_most(self, rule, deterministic):
        policy = make_model().policy
        policy.action_selection = rule
        with th.no_grad():
            for weight in policy.actor.parameters():
                weight.add_(0.3 * th.randn_like(weight))  # no longer the behavior
            features = policy.features(th.as_tensor(observations(20)))
            generators = [policy.actor.model.generator, policy.behavior.generator]
            states = [generator.get_state() for generator in generators]
            chosen = policy.act(features, deterministic)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            candidates = []
            for model, n_actions in ((policy.actor.model, rule.actor), (policy.behavior, rule.behavior)):
                if n_actions:
                    noise = _fixed_noise(n_actions, 2).repeat(20, 1) if deterministic else None
                    candidates.append(policy.actor.sample_actions(features, n_actions, noise, model))
            if rule.gaussian:
                candidates.append(policy._sample_gaussian(features, rule.gaussian, deterministic))
                th.testing.assert_close(candidates[-1][:, 0], policy.gaussian.mode(features))
            candidates = th.cat(candidates, dim=1)
            assert candidates.shape == (20, rule.n_candidates, 2)
            picks = set()
            for row in range(20):
                values = [
                    min(policy.critic(features[row : row + 1], action[None])[:, 0].tolist()) for action in candidates[row]
                ]
                picks.add(int(np.argmax(values)))
                assert th.equal(chosen[row], candidates[row, np.argmax(values)])
            assert len(picks) > 1 or rule.n_candidates == 1

    def test_each_environment_is_explored_by_its_actor(self):
        """The generator is used in an order that does not depend on the process."""
        policy = make_model().policy
        features = policy.features(th.as_tensor(observations(8)))
        generator = policy.actor.model.generator
        for order in permutations(("policy", "behavior", "gaussian", "behavior_gaussian")):
            actors = [*order, *order]
            state = ExplorationState(actors, 0.1, 0.6, th.full((8, 2), 0.5))
            states = generator.get_state(), policy.behavior.generator.get_state()
            explored = policy._explore(features, state)
            generator.set_state(states[0])
            policy.behavior.generator.set_state(states[1])
            with th.no_grad():
                for actor in order:
                    rows = [i for i in range(8) if actors[i] == actor]
                    if actor == "policy":
                        expected = policy.act(features[rows])
                        expected = (expected + 0.1 * th.randn(2, 2, generator=generator)).clamp(-1, 1)
                    elif actor.startswith("behavior"):
                        start = 0.6 * 0.5 + 0.8 * th.randn(2, 2, generator=generator)
                        expected = policy.actor.sample_actions(features[rows], 1, start, policy.behavior)[:, 0]
                        if actor == "behavior_gaussian":
                            expected, _ = policy.behavior_gaussian.action_log_prob(features[rows], start)
                        th.testing.assert_close(state.start_noise[rows], start)
                    else:
                        expected, _ = policy.gaussian.action_log_prob(features[rows], th.randn(2, 2, generator=generator))
                    th.testing.assert_close(explored[rows], expected)

    def test_evaluation_while_exploring(self):
        policy = make_model().policy
        obs = observations(4)
        before = policy.predict(obs, deterministic=True)[0]
        policy.exploration = ExplorationState(["gaussian"] * 4, 0.1, 0.6, th.zeros(4, 2))
        np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], before)
        np.testing.assert_allclose(policy.predict(obs[0], deterministic=True)[0], before[0], rtol=1e-5)
        with pytest.raises(ValueError, match=r"4 environments, got a batch of 1\. Pass deterministic=True"):
            policy.predict(obs[0])

    @pytest.mark.slow
    def test_behavior_stays_what_it_was(self):
        model = make_model()
        behavior, actor = (
            {key: value.clone() for key, value in part.state_dict().items()}
            for part in (model.policy.behavior, model.policy.actor.model)
        )
        assert all(th.equal(value, actor[key]) for key, value in behavior.items())
        model.learn(40, callback=DiffusionFinetuneCallback("dql"))
        assert all(th.equal(value, behavior[key]) for key, value in model.policy.behavior.state_dict().items())
        assert not all(th.equal(value, actor[key]) for key, value in model.policy.actor.model.state_dict().items())


class TestFeatures:
    def test_fourier_features_are_a_setting(self, tmp_path):
        small, wide = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (6,))
        for space, n_frequencies, dim in ((small, None, 22), (small, 0, 2), (small, 3, 14), (wide, None, 6), (wide, 2, 30)):
            actor = DiffusionActor(space, ACTION, net_arch=[8], n_frequencies=n_frequencies)
            assert actor.features.dim == dim
            assert actor.config["n_frequencies"] == (
                n_frequencies if n_frequencies is not None else 5 if space is small else 0
            )
            actor.save(tmp_path / "policy.safetensors")
            loaded = DiffusionActor.load(tmp_path / "policy.safetensors", device="cpu")
            assert loaded.config == actor.config and loaded.features.dim == dim
        with pytest.raises(ValueError, match="finite bounds"):
            DiffusionActor(OBSERVATION, ACTION, n_frequencies=3)

    def test_files_without_the_setting_load(self, tmp_path):
        actor = DiffusionActor(spaces.Box(-1, 1, (2,)), ACTION, net_arch=[8], seed=0)
        config = dict(actor.config)
        del actor.config["n_frequencies"]
        actor.save(tmp_path / "policy.safetensors")
        loaded = DiffusionActor.load(tmp_path / "policy.safetensors", device="cpu")
        assert loaded.config == config
        obs = np.zeros((3, 2), np.float32)
        np.testing.assert_array_equal(loaded.predict(obs, True), actor.predict(obs, True))
