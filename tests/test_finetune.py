"""Fine-tuning: values against closed forms, the callback inside of Stable-Baselines3's loop, the recipe as a user runs it."""

import csv
import json
import shutil
import signal
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import tiny_finetune
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import sb3_exdm
from sb3_exdm import OPERATORS, DiffusionActor, DiffusionFinetuneCallback, FinetuneReplayBuffer, RunFolder
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.finetuning import Operator, distill, register_operator
from sb3_exdm.finetuning import callback as callback_module
from sb3_exdm.finetuning.critics import Batch, ExpectileValue, GaussianUpdate, expectile_loss, support_value
from sb3_exdm.finetuning.operators import make_operator
from sb3_exdm.policies import ActionSelection, DiffusionPolicy
from sb3_exdm.policies.diffusion_actor import load_pretrained
from sb3_exdm.recipes.evaluation import play
from sb3_exdm.recipes.evaluation_callback import EvaluationCallback
from sb3_exdm.runs.envs import EnvSource

MAZE = "Maze2d-SquareA-v0"


class TwoSteps(gym.Env):
    """Two steps an episode. Each has another best action; the middle of the range is wrong in both."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Box(0.0, 4.0, (1,))
    best = (3.4, 0.8)

    def __init__(self, reward_step: float = 1.0) -> None:
        self.reward_step = reward_step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        reward = -self.reward_step * ((float(action[0]) - self.best[self.step_count]) / 2.0) ** 2
        self.step_count += 1
        return np.full(1, self.step_count / 2, np.float32), reward, self.step_count == 2, False, {}


class UnboundedTwoSteps(TwoSteps):
    """The same on another scale, without bounds."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return 30.0 * obs + 100.0, info

    def step(self, action):
        obs, *rest = super().step(action)
        return 30.0 * obs + 100.0, *rest


OBSERVATIONS = np.array([[0.0], [0.5]], np.float32)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """A diffusion policy that acts about uniformly."""
    rng = np.random.default_rng(0)
    actor = DiffusionActor(TwoSteps.observation_space, TwoSteps.action_space, net_arch=[32, 32], seed=0)
    actor.fit(rng.choice(OBSERVATIONS.ravel(), (500, 1)), rng.uniform(0.0, 4.0, (500, 1)), 300, 128)
    path = tmp_path_factory.mktemp("uniform") / "policy.safetensors"
    actor.save(path)
    return path


@pytest.fixture(scope="module")
def habit(tmp_path_factory):
    """A diffusion policy that always does about the same."""
    spaces_ = TwoSteps.observation_space, TwoSteps.action_space
    actor = DiffusionActor(*spaces_, net_arch=[32, 32], learning_rate=5e-3, seed=0)
    actor.fit(np.tile(OBSERVATIONS, (50, 1)), np.random.default_rng(0).normal(3.0, 0.05, (100, 1)), 800, 32)
    path = tmp_path_factory.mktemp("habit") / "policy.safetensors"
    actor.save(path)
    return path


def make_model(pretrained=None, algorithm=SAC, *, n_envs: int = 1, reward_step: float = 1.0, policy_kwargs=None, **kwargs):
    env = DummyVecEnv([lambda: TwoSteps(reward_step)] * n_envs)
    settings = {"learning_starts": 10, "batch_size": 16, "buffer_size": 2000, "seed": 0, "device": "cpu", **kwargs}
    arch = {"pretrained": pretrained, "net_arch": [16], **({} if pretrained else {"diffusion_arch": [8]})}
    return algorithm("DiffusionPolicy", env, policy_kwargs={**arch, **(policy_kwargs or {})}, **settings)


def play_once(model) -> float:
    env, total = TwoSteps(), 0.0
    obs, _ = env.reset()
    for _ in range(2):
        obs, reward, *_ = env.step(model.predict(obs, deterministic=True)[0])
        total += reward
    return total


def weights_of(model) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in model.policy.state_dict().items() if isinstance(value, th.Tensor)}


def same_weights(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all(th.equal(value, second[key]) for key, value in first.items())


class Watch(BaseCallback):
    """Number of updates and actor of each environment, for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.n_updates: list[int] = []
        self.actors: list[list[str]] = []

    def _on_step(self) -> bool:
        self.n_updates.append(self.model._n_updates)
        self.actors.append(list(self.model.policy.exploration.actors))
        return True


def expectile(values: np.ndarray, tau: float) -> float:
    """By bisection of its first-order condition."""
    low, high = values.min(), values.max()
    for _ in range(80):
        middle = 0.5 * (low + high)
        slope = np.where(values > middle, tau, 1 - tau) @ (values - middle)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(low)


class TestValues:
    @pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.95])
    def test_expectile_loss_is_smallest_at_the_expectile(self, tau):
        values = np.random.default_rng(0).exponential(size=200)
        samples = th.as_tensor(values)
        constant = th.zeros((), dtype=th.float64, requires_grad=True)
        optimizer = th.optim.LBFGS([constant], max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-14)

        def closure():
            optimizer.zero_grad()
            loss = expectile_loss(samples - constant, tau)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert constant.item() == pytest.approx(expectile(values, tau), abs=1e-6)
        if tau == 0.5:
            assert constant.item() == pytest.approx(values.mean(), abs=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("tau", [0.3, 0.9])
    def test_expectile_value_finds_the_expectile_of_the_values_in_each_state(self, tau):
        policy = make_model(policy_kwargs={"n_critics": 2}).policy
        actions = th.linspace(-1, 1, 64).repeat(2)[:, None]
        features = policy.features(th.as_tensor(OBSERVATIONS).repeat_interleave(64, dim=0))
        value = ExpectileValue(policy, tau, learning_rate=1e-2)
        batch = Batch(features, actions, *[th.zeros(128)] * 3)
        for _ in range(300):
            value.learn(batch)
        with th.no_grad():
            aims = policy.critic_target(features, actions).amin(dim=0).reshape(2, 64).double().numpy()
            found = value.state_values(features).reshape(2, 64)[:, 0]
        assert found.tolist() == pytest.approx([expectile(row, tau) for row in aims], abs=2e-3)
        with pytest.raises(ValueError, match="expectile"):
            ExpectileValue(policy, 1.0)

    def test_support_value(self):
        policy = make_model(policy_kwargs={"n_critics": 3}).policy
        features, actions = th.randn(10, policy.actor.features.dim), th.rand(10, 7, 1) * 2 - 1
        batch = Batch(features, *[th.zeros(10)] * 2, features, th.zeros(10), None, actions)
        values = np.array(
            [
                [min(policy.critic_target(features[i : i + 1], actions[i, j : j + 1])[:, 0].tolist()) for j in range(7)]
                for i in range(10)
            ]
        )
        weights = np.exp(3.0 * (values - values.max(axis=1, keepdims=True)))
        expected = (weights / weights.sum(axis=1, keepdims=True) * values).sum(axis=1)
        for inverse_temperature, exact in ((3.0, expected), (0.0, values.mean(axis=1)), (1e6, values.max(axis=1))):
            np.testing.assert_allclose(support_value(policy, batch, inverse_temperature), exact, rtol=1e-5)

    def test_soft_value_and_density_are_those_of_stable_baselines3(self):
        policy = make_model().policy
        features = th.randn(50, policy.actor.features.dim)
        soft = GaussianUpdate(policy, ent_coef=0.3)
        generator = policy.actor.model.generator
        state = generator.get_state()
        found = soft.next_values(Batch(features, *[th.zeros(50)] * 2, features, th.zeros(50)))
        noise = th.randn(50, 1, generator=generator.set_state(state))
        with th.no_grad():
            mean, log_std = policy.gaussian(features)
            distribution = SquashedDiagGaussianDistribution(1).proba_distribution(mean, log_std)
            gaussian_actions = mean + log_std.exp() * noise
            actions, log_prob = policy.gaussian.action_log_prob(features, noise)
            th.testing.assert_close(actions, gaussian_actions.tanh())
            reference = distribution.log_prob(gaussian_actions.tanh(), gaussian_actions)
            th.testing.assert_close(log_prob, reference, rtol=0, atol=1e-4)  # theirs has an epsilon inside
            th.testing.assert_close(policy.gaussian.mode(features), distribution.mode())
            next_q = th.cat(tuple(policy.critic_target(features, actions)[:, :, None]), dim=1).min(dim=1).values  # as in SAC
            th.testing.assert_close(found, next_q - 0.3 * reference, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="ent_coef"):
            GaussianUpdate(policy, ent_coef=0.0)

    @pytest.mark.parametrize(("target_entropy", "rises"), [(5.0, True), (-20.0, False)])
    def test_temperature_aims_at_the_entropy(self, target_entropy, rises):
        policy = make_model().policy
        soft = GaussianUpdate(policy, target_entropy=target_entropy)
        features = th.randn(50, policy.actor.features.dim)
        before = {key: value.clone() for key, value in policy.critic.state_dict().items()}
        for _ in range(5):
            soft.learn(Batch(features, *[th.zeros(50)] * 2, features, th.zeros(50)))
        assert (soft.log_ent_coef.exp().item() > 0.01) is rises
        assert all(th.equal(value, before[key]) for key, value in policy.critic.state_dict().items())
        assert all(weight.grad is None for weight in policy.critic.parameters())

    @pytest.mark.slow
    def test_critic_learns_the_values_of_a_chain(self):
        """Five places, left or right by chance; 1 for reaching the last, where it ends. IQL of expectile 1/2 is TD."""
        gamma, n = 0.9, 5
        transition, reward = np.zeros((n - 1, 2, n)), np.zeros((n - 1, 2))
        for place in range(n - 1):
            transition[place, 0, max(place - 1, 0)] = transition[place, 1, place + 1] = 1.0
        reward[-1, 1] = 1.0
        values = np.linalg.solve(np.eye(n - 1) - gamma * transition.mean(axis=1)[:, :-1], reward.mean(axis=1))
        exact = reward + gamma * transition[:, :, :-1] @ values  # (n - 1, 2)

        policy = make_model(policy_kwargs={"net_arch": [32, 32], "n_critics": 2}, learning_rate=5e-3).policy
        places = np.repeat(np.arange(n - 1), 2)
        next_places = transition.reshape(-1, n).argmax(axis=1)
        features, next_features = (
            policy.features(th.as_tensor(rows[:, None] / (n - 1), dtype=th.float32)) for rows in (places, next_places)
        )
        batch = Batch(
            features,
            th.tensor([-0.5, 0.5]).repeat(n - 1)[:, None],
            th.as_tensor(reward.ravel(), dtype=th.float32),
            next_features,
            gamma * th.as_tensor(next_places < n - 1, dtype=th.float32),
        )
        value, operator = ExpectileValue(policy, 0.5, learning_rate=5e-3), Operator(policy, tau=0.2)
        for step in range(900):
            if step == 700:  # the noise of Adam settles
                for optimizer in (value.optimizer, policy.critic.optimizer):
                    optimizer.param_groups[0]["lr"] = 5e-4
            value.learn(batch)
            operator.update_critic(batch, value.next_values(batch))
        found = policy.critic(batch.features, batch.actions).detach().reshape(2, n - 1, 2)
        np.testing.assert_allclose(found, np.stack([exact, exact]), atol=0.02)

    def test_target_critics_follow(self):
        policy = make_model().policy
        batch = Batch(th.randn(8, policy.actor.features.dim), th.zeros(8, 1), th.ones(8), th.zeros(8, 1), th.zeros(8))
        before = policy.critic_target.weights[0].clone()
        loss = Operator(policy, tau=0.25).update_critic(batch, th.full((8,), 1e9))
        th.testing.assert_close(policy.critic_target.weights[0], before + 0.25 * (policy.critic.weights[0] - before))
        assert loss < 100, "where the discount is 0 the next value counts for nothing"


class TestCallback:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("operator", "kwargs"), [*((operator, {}) for operator in OPERATORS), ("exdm", {"critic": "support"})]
    )
    def test_every_operator_improves(self, operator, kwargs, uniform):
        model = make_model(
            uniform,
            n_envs=8,
            learning_rate=3e-3,
            learning_starts=80,
            gradient_steps=3,
            batch_size=32,
            gamma=0.9,
            tau=0.05,
            policy_kwargs={"net_arch": [32, 32]},
        )
        before = play_once(model)
        assert before < -0.7, "the middle is wrong"
        model.learn(800, callback=DiffusionFinetuneCallback(operator, operator_kwargs=kwargs))
        assert play_once(model) > before + 0.25

    @pytest.mark.slow
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_saved_and_loaded_training_goes_on_as_if_nothing_had_happened(self, operator, uniform, tmp_path, monkeypatch):
        monkeypatch.setattr(callback_module, "LOG_FREQ", 1)

        def go_on(model) -> tuple[dict, dict]:
            model.set_env(DummyVecEnv([TwoSteps]))
            # Cached actions are not part of the file, so both must draw them again.
            model.replay_buffer.clear_cached_actions()
            model.learn(15, callback=DiffusionFinetuneCallback(operator), reset_num_timesteps=False, log_interval=10**6)
            log = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
            return weights_of(model), log

        model = make_model(uniform, gradient_steps=2)
        callback = DiffusionFinetuneCallback(operator)
        model.learn(20, callback=callback)
        assert model._n_updates == callback.n_updates == 20 and callback.first_update_timestep == 11
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        loaded = SAC.load(tmp_path / "model", device="cpu")
        loaded.load_replay_buffer(tmp_path / "buffer")
        (weights, log), (loaded_weights, loaded_log) = go_on(model), go_on(loaded)
        assert same_weights(weights, loaded_weights)
        assert log == loaded_log and log["train/n_updates"] == 50, "there is no second warm-up"
        assert len(log) > 2

    @pytest.mark.slow
    def test_learning_in_two_parts_is_no_new_beginning(self, habit):
        watch = Watch()
        model = make_model(habit)
        callback = DiffusionFinetuneCallback("idql")
        model.learn(20, callback=callback)
        value = callback.operator.training_state()["value"]["weights"]
        value = {key: weight.clone() for key, weight in value.items()}
        for again in (callback, DiffusionFinetuneCallback("idql")):
            model.learn(1, callback=[again, watch], reset_num_timesteps=False)
            after = again.operator.training_state()["value"]["weights"]
            assert max((after[key] - weight).abs().max() for key, weight in value.items()) < 0.01, "one or two steps of Adam"
        assert watch.actors == [["policy"], ["policy"]] and watch.n_updates == [10, 11]
        # Another model is another matter.
        model = make_model(habit)
        model.learn(20, callback=callback)
        assert model._n_updates == 10

    @pytest.mark.slow
    @pytest.mark.parametrize("gradient_steps", [1, 2, -1])
    @pytest.mark.parametrize("algorithm", [SAC, TD3])
    def test_settings_of_the_algorithm_keep_their_meaning(self, algorithm, gradient_steps):
        watch = Watch()
        model = make_model(
            algorithm=algorithm, n_envs=3, gradient_steps=gradient_steps, learning_starts=30, train_freq=2, learning_rate=2e-4
        )
        model.learn(60, callback=[DiffusionFinetuneCallback(), watch])
        assert (model.gradient_steps, model.learning_starts) == (gradient_steps, 30)
        # Ten rollouts of two steps in three environments; the sixth ends after more than 30 transitions.
        assert model._n_updates == 5 * (6 if gradient_steps == -1 else gradient_steps)
        assert watch.n_updates[:12] == [0] * 12 and watch.n_updates[12] > 0
        for optimizer in (model.policy.critic.optimizer, model.policy.actor.optimizer):
            assert optimizer.param_groups[0]["lr"] == 2e-4

    def test_the_critic_can_learn_first(self, habit, monkeypatch):
        model = make_model(habit, learning_starts=4, gradient_steps=1)
        gaussian, learned = model.policy.gaussian, []
        learn = Operator.update_critic

        def watched(self, *args):
            learned.append(th.cat([parameter.detach().flatten() for parameter in gaussian.parameters()]))
            return learn(self, *args)

        monkeypatch.setattr(Operator, "update_critic", watched)
        model.learn(8, callback=DiffusionFinetuneCallback(critic_updates=5))
        assert model._n_updates == len(learned) == 5 + 4, "five alone after the fifth step, then one a step"
        assert all(th.equal(learned[0], weights) for weights in learned[:6]), "the Gaussian waits for the critic"
        assert not th.equal(learned[0], learned[7])

    def test_warm_up_acts_with_the_pretrained_policy_and_learns_nothing(self, habit):
        model = make_model(habit, n_envs=2, learning_starts=100)
        weights = weights_of(model)
        model.learn(100, callback=DiffusionFinetuneCallback())
        assert isinstance(model.replay_buffer, FinetuneReplayBuffer) and model._n_updates == 0
        assert same_weights(weights, weights_of(model))
        actions = model.replay_buffer.actions[:50].ravel()
        assert np.abs(actions - 0.5).max() < 0.25, "3 of 0 to 4, where uniform actions would be anywhere"
        assert len(np.unique(actions)) > 40

    def test_nothing_is_learned_while_all_rewards_are_the_same(self, habit):
        model = make_model(habit, reward_step=0.0)
        weights = weights_of(model)
        callback = DiffusionFinetuneCallback("dql")
        with pytest.warns(UserWarning, match=r"no reward signal.*--reuse-data"):
            model.learn(40, callback=callback)
        assert not callback.saw_reward and callback.first_update_timestep is None
        assert model._n_updates == 0 and same_weights(weights, weights_of(model))
        assert np.quantile(np.abs(model.replay_buffer.actions[:40] - 0.5), 0.9) < 0.25
        model.set_env(DummyVecEnv([TwoSteps]))
        model.learn(10, callback=DiffusionFinetuneCallback("dql"), reset_num_timesteps=False)
        assert model._n_updates == 10, "from the second kind of reward on"

    @pytest.mark.parametrize(("n_envs", "keep", "n_kept"), [(4, True, 1), (4, False, 0), (3, True, 0)])
    def test_one_environment_goes_on_exploring(self, n_envs, keep, n_kept, habit):
        watch = Watch()
        model = make_model(habit, n_envs=n_envs)
        model.learn(40, callback=[DiffusionFinetuneCallback(keep_exploring=keep), watch])
        assert watch.actors[0] == ["behavior"] * n_envs
        assert watch.actors[-1] == ["behavior"] * n_kept + ["policy"] * (n_envs - n_kept)

    def test_offline_transitions_are_learned_first(self, habit):
        watch = Watch()
        rng = np.random.default_rng(0)
        transitions = dict(observations=rng.random((40, 1)), next_observations=rng.random((40, 1)), rewards=rng.random(40))
        transitions |= dict(actions=rng.uniform(0, 4, (40, 1)), env_indices=np.zeros(40, np.int64))
        transitions |= dict(terminated=np.ones(40, bool), truncated=np.zeros(40, bool))
        model = make_model(habit, replay_buffer_class=FinetuneReplayBuffer)
        model.replay_buffer.add_offline(transitions)
        for again in range(2):
            model.learn(3, callback=[DiffusionFinetuneCallback("weighted", offline_updates=7), watch])
            assert watch.n_updates == [7] * 3 * (again + 1) and watch.actors[-1] == ["policy"]

    def test_checkpoints_of_other_callbacks_can_be_gone_on_with(self, habit, tmp_path):
        model = make_model(habit, gradient_steps=3)
        checkpoints = CheckpointCallback(15, tmp_path, save_replay_buffer=True)
        model.learn(20, callback=[DiffusionFinetuneCallback("idql"), checkpoints])
        loaded = SAC.load(tmp_path / "rl_model_15_steps", env=DummyVecEnv([TwoSteps]), device="cpu")
        loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_15_steps")
        loaded.learn(5, callback=DiffusionFinetuneCallback("idql"), reset_num_timesteps=False)
        assert (loaded.gradient_steps, loaded.learning_starts) == (3, 10)
        assert loaded._n_updates == 3 * 4 + 3 * 5

    def test_interrupted_learning_can_be_gone_on_with(self, habit):
        class Interrupt(BaseCallback):
            def _on_step(self) -> bool:
                if self.num_timesteps == 15:
                    raise KeyboardInterrupt
                return True

        model = make_model(habit)
        with pytest.raises(KeyboardInterrupt):
            model.learn(20, callback=[DiffusionFinetuneCallback(), Interrupt()])
        with pytest.raises(ValueError, match=r"set policy\.exploration = None"):
            model.predict(np.zeros((3, 1), np.float32))
        model.learn(5, callback=DiffusionFinetuneCallback(), reset_num_timesteps=False)
        assert (model.gradient_steps, model.learning_starts, model._n_updates) == (1, 10, 4 + 5)
        model.predict(np.zeros((3, 1), np.float32))

    def test_policy_holds_data_and_no_callback(self, habit):
        """Its training state can be copied to another model, which shares no tensors with the first."""
        model = make_model(habit)
        callback = DiffusionFinetuneCallback("exdm")
        model.learn(20, callback=callback)
        state = model.policy.finetuning_state
        assert (state["operator"], state["n_collected"], state["n_updates"]) == ("exdm", 20, 10)
        assert set(state["parts"]) == set(callback.operator.parts) == {"value", "energy"}
        before = deepcopy(state)
        second = make_model(habit)
        second.set_parameters(model.get_parameters(), device="cpu")
        second.learn(20, callback=DiffusionFinetuneCallback("exdm"))
        for name in ("value", "energy"):
            for key, weights in before["parts"][name]["weights"].items():
                assert th.equal(weights, state["parts"][name]["weights"][key])
            for slot, values in before["parts"][name]["optimizer"]["state"].items():
                assert all(th.equal(v, state["parts"][name]["optimizer"]["state"][slot][k]) for k, v in values.items())
        assert second.policy.finetuning_state["n_updates"] > 20 and model.policy.exploration is None

    @pytest.mark.slow
    def test_operators_of_users(self, habit):
        @register_operator("still")
        class Still(Operator):
            """Learns nothing."""

            action_selection = ActionSelection(actor=0, behavior=1)

            def __init__(self, policy: DiffusionPolicy, *, depth: int = 3, **kwargs) -> None:
                super().__init__(policy, **kwargs)
                self.depth = depth

            def learn(self, batch: Batch) -> dict[str, th.Tensor]:
                return {"depth": th.tensor(self.depth)}

        try:
            callback = DiffusionFinetuneCallback("still", operator_kwargs={"depth": 5})
            model = make_model(habit)
            weights = weights_of(model)
            model.learn(20, callback=callback)
            assert callback.operator.depth == 5 and model._n_updates == 10 and same_weights(weights, weights_of(model))
            assert model.policy.action_selection == Still.action_selection
            with pytest.raises(ValueError, match=r"operator_kwargs\['depth'\] must be int, got 'deep'"):
                make_operator("still", model.policy, depth="deep")
            with pytest.raises(ValueError, match=r"'stil'.*did you mean 'still'"):
                DiffusionFinetuneCallback("stil")
            with pytest.raises(ValueError, match="operator 'still' already"):
                register_operator("still")(type("Other", (Operator,), {}))
        finally:
            OPERATORS.unregister("still")

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"PPO with ActorCriticPolicy.*SAC\(\"DiffusionPolicy\""):
            PPO("MlpPolicy", DummyVecEnv([TwoSteps]), device="cpu").learn(10, callback=DiffusionFinetuneCallback())
        with pytest.raises(ValueError, match="SAC with SACPolicy"):
            SAC("MlpPolicy", TwoSteps(), device="cpu", buffer_size=9).learn(10, callback=DiffusionFinetuneCallback())
        with pytest.raises(ValueError, match="gradient_steps=0"):
            make_model(gradient_steps=0).learn(10, callback=DiffusionFinetuneCallback())
        with pytest.raises(ValueError, match="FinetuneReplayBuffer or an ordinary ReplayBuffer, got ScoreRewardReplayBuffer"):
            model = make_model(replay_buffer_class=sb3_exdm.ScoreRewardReplayBuffer)
            model.learn(10, callback=DiffusionFinetuneCallback())
        with pytest.raises(ValueError, match="optimize_memory_usage"):
            kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
            make_model(**kwargs).learn(10, callback=DiffusionFinetuneCallback())

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"operator": "magic"}, "'magic'.*" + ".*".join(OPERATORS)),
            ({"exploration_noise": -0.1}, "exploration_noise"),
            ({"exploration_noise": float("nan")}, "exploration_noise"),
            ({"correlation": 1.0}, "correlation"),
            ({"offline_updates": -1}, "offline_updates"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            DiffusionFinetuneCallback(**kwargs)

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_bad_arguments_of_operators(self, operator):
        with pytest.raises(ValueError, match=f"operator_kwargs has no 'depth'.*{OPERATORS[operator].__name__} takes .*tau"):
            make_model().learn(1, callback=DiffusionFinetuneCallback(operator, operator_kwargs={"depth": 3}))

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_the_learning_rate_is_that_of_the_algorithm(self, operator):
        with pytest.raises(ValueError, match="learning_rate of the algorithm"):
            DiffusionFinetuneCallback(operator, operator_kwargs={"learning_rate": 1.0})

    @pytest.mark.parametrize("operator", OPERATORS)
    def test_all_optimizers_follow_the_learning_rate(self, operator):
        built = make_operator(operator, make_model().policy)
        optimizers = built.optimizers()
        assert len({id(optimizer) for optimizer in optimizers}) == len(optimizers) == 2 + len(built.parts)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A run folder with everything."""
    path = tmp_path_factory.mktemp("explored") / "run"
    settings = {"learning_starts": 100, "policy_kwargs": {"net_arch": [16]}}
    sb3_exdm.pretrain(MAZE, 400, out=path, seed=1, algo_kwargs=settings, policy_steps=50, progress_bar=False, device="cpu")
    return path


def progress_of(path) -> list[dict[str, str]]:
    """Without the times."""
    with (path / "progress.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


class TestRecipe:
    @pytest.mark.slow
    @pytest.mark.parametrize("policy", ["diffusion", "gaussian"])
    def test_run_folder(self, policy, explored, tmp_path):
        shutil.copytree(explored, tmp_path / "explored")
        run = tiny_finetune(tmp_path / "explored", policy=policy, out=tmp_path / "run", seed=3)
        shutil.rmtree(tmp_path / "explored")
        names = {path.name for path in run.path.iterdir()}
        files = {"config.json", "summary.json", "progress.csv", "model.safetensors", "learning_curve.png"}
        assert names == files | {"tensorboard", "checkpoints"} | ({"policy.safetensors"} if policy == "diffusion" else set())
        progress = progress_of(run.path)
        assert [row["timesteps"] for row in progress] == ["0", "80", "160"]
        assert {"mean_reward", "success_rate"} <= progress[0].keys()
        summary = json.loads((run.path / "summary.json").read_text())
        assert summary["policy"] == policy and summary["timesteps"] == 160 and summary["n_episodes"] == 3
        assert summary["operator"] == (next(iter(OPERATORS)) if policy == "diffusion" else None)
        assert float(progress[-1]["mean_reward"]) == pytest.approx(summary["mean_reward"], rel=1e-5)
        # The loaded agent plays the last evaluation again, and acts alike otherwise.
        loaded = RunFolder(run.path).load_model(device="cpu")
        obs = RunFolder(explored).transitions()["observations"][:20].astype(np.float64)
        np.testing.assert_array_equal(
            loaded.predict(obs, deterministic=True)[0], run.model.predict(obs, deterministic=True)[0]
        )
        assert same_weights(weights_of(loaded), weights_of(run.model))
        for again in (run.path, run.model):
            kwargs = (
                {} if again is run.path else {"env": MAZE, "env_kwargs": {"reward_type": "dense", "max_episode_steps": 10}}
            )
            evaluation = sb3_exdm.evaluate(again, n_episodes=3, seed=3, device="cpu", **kwargs)
            assert evaluation.summary()["mean_reward"] == summary["mean_reward"]
            assert evaluation.lengths.tolist() == [10] * 3
        other = sb3_exdm.evaluate(run.path, n_episodes=3, seed=4, device="cpu")
        assert other.summary()["mean_reward"] != summary["mean_reward"]
        # It can be trained further.
        env = EnvSource.of(MAZE).make_vec(4, 0, {"reward_type": "dense"})
        callback = DiffusionFinetuneCallback("select" if policy == "diffusion" else "sac")
        further = RunFolder(run.path).load_model(env, device="cpu")
        further.learn(200, callback=callback)
        assert further._n_updates > run.model._n_updates

    @pytest.mark.slow
    @pytest.mark.parametrize("policy", ["diffusion", "gaussian"])
    def test_same_seed_same_numbers(self, policy, explored, tmp_path):
        for name, seed in (("first", 0), ("second", 0), ("other", 1)):
            tiny_finetune(explored, policy=policy, out=tmp_path / name, seed=seed)
        first, second, other = (progress_of(tmp_path / name) for name in ("first", "second", "other"))
        assert first == second != other

    @pytest.mark.slow
    @pytest.mark.parametrize("policy", ["diffusion", "gaussian"])
    def test_from_scratch(self, policy, tmp_path):
        run = tiny_finetune(policy=policy)
        assert run.path is None and run.summary["pretrained"] is None and run.model._n_updates > 0

    @pytest.mark.parametrize("start", ["last", "cloned"])
    def test_gaussian_starts_from_a_pretrained_one(self, start, explored):
        """The critics are new, and the warm-up is the Gaussian's own unless it is set."""
        model = tiny_finetune(explored, policy="gaussian", start=start, steps=40).model
        pretrained = load_pretrained(explored, "cpu")
        expected = {"last": pretrained.gaussian, "cloned": pretrained.cloned}[start].state_dict()
        for gaussian in (model.policy.gaussian, model.policy.behavior_gaussian):
            assert all(th.equal(value, expected[key]) for key, value in gaussian.state_dict().items())
        assert model._n_updates == 0 and model.critic.n_critics == 2 and not model.critic.optimizer.state
        explorer = RunFolder(explored).load_model(device="cpu").actor.state_dict()
        is_explorer = all(th.equal(value, explorer[key]) for key, value in expected.items())
        assert is_explorer == (start == "last")

    @pytest.mark.slow
    def test_gaussian_acts_and_is_saved(self, explored, tmp_path):
        run = tiny_finetune(explored, policy="gaussian", start="cloned", out=tmp_path / "run", kl_steps=20)
        assert run.summary["policy"] == "gaussian" and run.summary["start"] == "cloned"
        assert run.summary["warm_up"] == "gaussian" and run.summary["operator"] is None
        selection = run.model.policy.action_selection
        assert (selection.actor, selection.behavior, selection.gaussian) == (0, 0, 1) and run.model._n_updates > 0
        assert not (tmp_path / "run" / "policy.safetensors").exists(), "nothing is distilled"
        loaded = RunFolder(tmp_path / "run").load_model(device="cpu")
        observations = RunFolder(explored).transitions()["observations"][:5]
        features = run.model.policy.features(th.as_tensor(observations))
        for model in (run.model, loaded):
            scaled = model.policy.scale_action(model.predict(observations, deterministic=True)[0])
            np.testing.assert_allclose(scaled, run.model.policy.gaussian.mode(features).detach().numpy(), atol=1e-5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"correlation": 1.0}, "correlation must be a number of at least 0 and below 1"),
            ({"start": "first"}, "last"),
            ({"warm_up": "uniform"}, "mixed"),
        ],
    )
    def test_bad_starts(self, settings, message, explored):
        with pytest.raises(ValueError, match=message):
            tiny_finetune(explored, policy="gaussian", **settings)

    def test_scratch_has_no_pretrained_policies(self):
        with pytest.raises(ValueError, match="there is no pre-training"):
            tiny_finetune(policy="gaussian", start="cloned")

    def test_diffusion_policy_brings_the_gaussian_along(self, explored):
        run = tiny_finetune(explored, steps=40)
        assert run.model._n_updates == 0 and run.model.policy.has_pretrained_gaussian
        weights = RunFolder(explored).load_model(device="cpu").actor.state_dict()
        assert all(th.equal(value, weights[key]) for key, value in run.model.policy.gaussian.state_dict().items())

    @pytest.mark.slow
    @pytest.mark.parametrize("policy", ["diffusion", "gaussian"])
    def test_reused_data(self, policy, explored):
        def reward_fn(observations, actions, next_observations):
            assert actions.shape == (400, 2)
            return next_observations[:, 0]

        run = tiny_finetune(explored, policy=policy, reuse_data=True, reward_fn=reward_fn, steps=16, offline_updates=20)
        assert run.model.replay_buffer.n_offline == 400
        assert run.model._n_updates == 20, "before the first step; then the warm-up"
        offline = RunFolder(explored).transitions()
        np.testing.assert_allclose(
            run.model.replay_buffer._offline.rewards.sum(), offline["next_observations"][:, 0].sum(), rtol=1e-4
        )

    @pytest.mark.slow
    def test_normalized_observations(self, tmp_path):
        """Unbounded ones: the policy standardizes them itself, with the moments of the exploration."""
        gym.register("UnboundedTwoSteps-v0", UnboundedTwoSteps)
        settings = {"learning_starts": 20, "policy_kwargs": {"net_arch": [8]}}
        kwargs = {"algo_kwargs": settings, "n_envs": 2, "progress_bar": False, "device": "cpu"}
        sb3_exdm.pretrain("UnboundedTwoSteps-v0", 60, out=tmp_path / "explored", policy_steps=20, **kwargs)
        for policy in ("gaussian", "diffusion"):
            arguments = {"policy": policy, "out": tmp_path / policy, "env_kwargs": {}, "algo_kwargs": settings}
            run = tiny_finetune(tmp_path / "explored", critic_updates=5, **arguments)
            assert run.model.get_vec_normalize_env() is None
            mean = RunFolder(tmp_path / "explored").observation_moments()[0]
            np.testing.assert_allclose(run.model.policy.actor.features.mean.numpy(), mean, rtol=1e-5)
            assert run.path is not None and RunFolder(run.path).config["kl_steps"] == (16_000 if policy == "gaussian" else 0)
            for again, env_id in ((run.path, None), (run.model, "UnboundedTwoSteps-v0")):
                evaluation = sb3_exdm.evaluate(again, env_id, 3, device="cpu")
                assert evaluation.summary()["mean_reward"] == run.summary["mean_reward"]

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"operator": "magic"}, ValueError, "magic.*choose one of"),
            ({"operator_kwargs": {"depth": 3}}, ValueError, "depth"),
            ({"operator": "idql", "operator_kwargs": {"expectile": 2.0}}, ValueError, "expectile.*2.0"),
            ({"operator_kwargs": {"tau": np.ones(2)}}, ValueError, "plain data"),
            ({"policy": "poetic"}, ValueError, "poetic.*gaussian"),
            ({"reward_fn": lambda *_: 0.0}, ValueError, "reuse_data=True"),
            ({"reuse_data": True, "reward_fn": lambda *_: 0.0}, ValueError, r"\(400,\)"),
            ({"env": "Pendulum-v1", "env_kwargs": {}}, ValueError, "pre-trained with observations"),
            ({"env": "Pendulum-v1", "env_kwargs": {}, "reuse_data": True}, ValueError, "reward_fn"),
            ({"env": "CartPole-v1", "env_kwargs": {}}, ValueError, "continuous actions"),
            ({"steps": 0}, ValueError, "total_timesteps"),
            ({"n_envs": 0}, ValueError, "n_envs"),
            ({"kl_steps": -1}, ValueError, "kl_steps"),
            ({"kl_steps": 10}, ValueError, "kl_steps.*gaussian"),
            ({"eval_freq": 0}, ValueError, "eval_freq"),
            ({"n_eval_episodes": 0}, ValueError, "n_eval_episodes"),
            ({"seed": -1}, ValueError, "seed"),
            ({"device": "abacus"}, ValueError, "abacus"),
            ({"algo_kwargs": {"depth": 3}}, ValueError, "depth"),
            ({"algo_kwargs": {"policy_kwargs": {"depth": 3}}}, ValueError, "depth"),
        ],
    )
    def test_bad_arguments_get_one_clear_sentence(self, kwargs, error, message, explored, tmp_path):
        arguments = {"pretrained": explored, "progress_bar": False, "device": "cpu", **kwargs}
        arguments["total_timesteps"] = arguments.pop("steps", 100)
        with pytest.raises(error, match=message) as raised:
            sb3_exdm.finetune(out=tmp_path / "run", **arguments)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists(), "nothing may be written before the arguments are known to be good"

    def test_missing_and_incomplete_folders(self, tmp_path):
        with pytest.raises(ValueError, match="Name an environment"):
            sb3_exdm.finetune()
        with pytest.raises(ValueError, match="reuse_data=True needs the run folder"):
            tiny_finetune(reuse_data=True)
        with pytest.raises(ArtifactError, match="is not a run folder"):
            sb3_exdm.finetune(pretrained=tmp_path)
        with pytest.raises(ArtifactError, match="neither a run folder nor the file of a policy"):
            sb3_exdm.evaluate(tmp_path / "nowhere")

    @pytest.mark.slow
    def test_interrupted_run_keeps_the_agent_and_says_so(self, explored, tmp_path, monkeypatch):
        def interrupt(self) -> bool:
            if self.num_timesteps == 80:
                signal.raise_signal(signal.SIGINT)
            return True

        monkeypatch.setattr(EvaluationCallback, "_on_step", interrupt)
        with pytest.raises(sb3_exdm.RunInterrupted, match=r"Interrupted after 80 of 160 steps.*80"):
            tiny_finetune(explored, out=tmp_path / "run")
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(ArtifactError, match="interrupted"):
            _ = folder.summary
        model = folder.load_model(checkpoint=80, device="cpu")
        assert isinstance(model.policy, DiffusionPolicy) and model.num_timesteps == 80 and model._n_updates > 0
        with pytest.raises(sb3_exdm.RunInterrupted, match="nothing was saved"):
            tiny_finetune(explored)

    def test_evaluation_counts_successes(self, explored):
        class Straight:
            """Goes to the origin, where the goal is."""

            def predict(self, observation, state=None, episode_start=None, deterministic=False):
                return np.clip(-observation, -0.95, 0.95).astype(np.float32), state

        env: VecEnv = EnvSource.of(MAZE).make_vec(2, 0, {"goal_cell": (0, 0), "max_episode_steps": 5})
        evaluation = play(Straight(), env, 4)
        assert evaluation.successes.tolist() == [True] * 4 and evaluation.summary()["success_rate"] == 1.0
        policy = explored / "policy.safetensors"
        assert sb3_exdm.evaluate(policy, MAZE, 2, device="cpu").returns.shape == (2,)
        with pytest.raises(ValueError, match="Name the environment"):
            sb3_exdm.evaluate(policy)
        with pytest.raises(ValueError, match=r"trained with .*Pendulum-v1 has"):
            sb3_exdm.evaluate(policy, "Pendulum-v1", 2)


@pytest.mark.slow
def test_distilled_policy_does_what_the_whole_does(habit):
    model = make_model(habit)
    model.learn(200, callback=DiffusionFinetuneCallback())
    actor = distill(model.policy, model.replay_buffer, gradient_steps=600, n_states=1000)
    obs = np.linspace(0.0, 1.0, 20, dtype=np.float32)[:, None]
    whole, single = model.predict(obs, deterministic=True)[0], actor.predict(obs, deterministic=True)
    span = model.action_space.high - model.action_space.low
    seen = model.replay_buffer.observations[: model.replay_buffer.size()].ravel()
    near = np.abs(obs - seen[None]).min(axis=1) < 0.02  # it imitates where it has been
    assert near.any() and np.median(np.abs(whole - single)[near] / span) < 0.1
