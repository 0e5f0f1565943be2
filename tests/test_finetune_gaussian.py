"""Fine-tuning of the policy that explored: Stable-Baselines3's numbers, KL regularization in closed form, and the schedule."""

import warnings
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_exdm.finetuning import FINETUNE_ALGORITHMS, FinetuneReplayBuffer, GaussianFinetuneCallback
from sb3_exdm.finetuning.gaussian import KL_COEF, FinetuneSAC

PLAIN = {"sac": SAC, "td3": TD3, "ddpg": DDPG}


class Reach(gym.Env):
    """The action should be 0.8 everywhere. Episodes have ten steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return self._observation(), {}

    def step(self, action):
        self.step_count += 1
        reward = -self.scale * float(np.abs(action - 0.8).sum())
        return self._observation(), reward, self.step_count == 10, False, {}

    def _observation(self):
        return self.np_random.normal(size=3).astype(np.float32)


def make_model(algo="sac", algorithms=FINETUNE_ALGORITHMS, scale: float = 1.0, **kwargs):
    settings = {"learning_starts": 20, "batch_size": 32, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16]}}
    return algorithms[algo]("MlpPolicy", Reach(scale), **{**settings, **kwargs})


def move(actor) -> None:
    """As learning might."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for weights in actor.parameters():
            weights += 0.1 * th.randn(weights.shape, generator=generator)


def tensors(model) -> dict[str, th.Tensor]:
    """Everything learned, optimizers included."""
    found = {}
    for name, state in model.get_parameters().items():
        if "optimizer" in name:
            state = {f"{i}.{key}": value for i, slot in state["state"].items() for key, value in slot.items()}
        found |= {f"{name}.{key}": value.clone() for key, value in state.items()}
    if getattr(model, "log_ent_coef", None) is not None:
        found["log_ent_coef"] = model.log_ent_coef.detach().clone()
    return found


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    assert before.keys() <= after.keys()
    return {key for key, value in after.items() if key not in before or not th.equal(value, before[key])}


def divergence(model, observations) -> th.Tensor:
    """Of the present actor."""
    if isinstance(model, SAC):
        mean, log_std, kwargs = model.actor.get_action_dist_params(observations)
        return model._divergence(
            observations, model.actor.action_dist.proba_distribution(mean, log_std, **kwargs).distribution
        )
    return model._divergence(observations, model.actor(observations))


OBSERVATIONS = th.randn(50, 3, generator=th.Generator().manual_seed(0))


@pytest.fixture
def without_fusion(monkeypatch):
    """The update with autograd, whose numbers are those of Stable-Baselines3 to the last bit."""
    monkeypatch.setattr(FinetuneSAC, "unsupported", lambda model: "the test compares with autograd")


@pytest.mark.slow
@pytest.mark.usefixtures("without_fusion")
@pytest.mark.parametrize(
    ("algo", "kwargs"),
    [
        ("sac", {}),
        ("sac", {"ent_coef": 0.1, "gradient_steps": 3, "target_update_interval": 2, "train_freq": 2}),
        ("sac", {"use_sde": True}),
        ("sac", {"ent_coef": "auto_0.01", "replay_buffer_class": FinetuneReplayBuffer}),
        ("sac", {"n_steps": 3}),
        ("td3", {}),
        ("td3", {"gradient_steps": 3, "policy_delay": 3, "n_steps": 2}),
        ("ddpg", {}),
    ],
)
def test_without_regularization_the_numbers_are_those_of_stable_baselines3(algo, kwargs):
    models = []
    for algorithms in (PLAIN, FINETUNE_ALGORITHMS):
        model = make_model(algo, algorithms, **kwargs).learn(60, log_interval=1)
        model.train(gradient_steps=5, batch_size=16)  # for the log, which `learn` dumps
        models.append(model)
    plain, ours = (tensors(model) for model in models)
    assert plain.keys() == ours.keys() and not changed(plain, ours)
    assert models[0]._n_updates == models[1]._n_updates > 30
    logs = [{key: value for key, value in model.logger.name_to_value.items() if "train" in key} for model in models]
    logs[1].pop("train/fused", None)
    assert logs[0] == logs[1] and len(logs[0]) > 2


@pytest.mark.slow
@pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
def test_files_are_those_of_stable_baselines3(algo, tmp_path):
    model, plain = make_model(algo), make_model(algo, PLAIN, seed=1)
    model.learn(30)
    model.start_regularization()
    assert model._get_torch_save_params() == plain._get_torch_save_params()
    plain.learn(30)
    for first, other in ((model, PLAIN[algo]), (plain, FINETUNE_ALGORITHMS[algo])):
        first.save(tmp_path / "model")
        loaded = other.load(tmp_path / "model", env=Reach(), device="cpu")
        assert not changed(tensors(first), tensors(loaded))
        assert not hasattr(loaded, "pretrained_actor")
        loaded.learn(10, reset_num_timesteps=False)
        assert loaded._n_updates == first._n_updates + 10


@pytest.mark.slow
@pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
def test_critic_only_updates_leave_actor_and_temperature(algo):
    model = make_model(algo)
    model.learn(40)
    before = tensors(model)
    model.train(8, batch_size=16, critic_only=True)
    found = changed(before, tensors(model))
    allowed = ("policy.critic", "critic.optimizer")
    assert found and all(key.startswith(allowed) for key in found), found
    for name in ("policy.critic.", "policy.critic_target.", "critic.optimizer."):
        expected = {key for key in before if key.startswith(name)}
        assert expected <= found, "everything of the critic learns"
    assert model._n_updates == 20 + 8


class TestRegularization:
    @pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
    def test_none_from_itself(self, algo):
        model = make_model(algo)
        model.start_regularization()
        found = divergence(model, OBSERVATIONS)
        assert found.shape == (50,) and found.abs().max() < 1e-6

    def test_of_gaussians(self):
        model = make_model()
        model.start_regularization()
        old_mean, old_log_std, _ = model.actor.get_action_dist_params(OBSERVATIONS)
        move(model.actor)
        mean, log_std, _ = model.actor.get_action_dist_params(OBSERVATIONS)
        ratio = (2 * (log_std - old_log_std)).exp()
        expected = 0.5 * (ratio - 1 - ratio.log() + (mean - old_mean) ** 2 / (2 * old_log_std).exp()).sum(1)
        assert expected.min() > 1e-3
        th.testing.assert_close(divergence(model, OBSERVATIONS), expected)

    def test_of_state_dependent_exploration(self):
        """The spread is that of the actions, by samples."""
        model = make_model(use_sde=True)
        model.start_regularization()
        move(model.actor)
        mean, log_std, further = model.actor.get_action_dist_params(OBSERVATIONS[:1].repeat(20_000, 1))
        model.actor.reset_noise(20_000)
        actions = model.actor.action_dist.actions_from_params(mean, log_std, **further).detach()
        with th.no_grad():
            now, before = (self._normal(actor) for actor in (model.actor, model.pretrained_actor))
        np.testing.assert_allclose(th.atanh(actions).std(0), now[1], rtol=0.05)
        expected = th.log(before[1] / now[1]) + (now[1] ** 2 + (now[0] - before[0]) ** 2) / (2 * before[1] ** 2) - 0.5
        th.testing.assert_close(divergence(model, OBSERVATIONS[:1])[0], expected.sum())

    @staticmethod
    def _normal(actor):
        mean, log_std, further = actor.get_action_dist_params(OBSERVATIONS[:1])
        variance = further["latent_sde"] ** 2 @ log_std.exp() ** 2
        return mean[0], (variance + actor.action_dist.epsilon).sqrt()[0]

    @pytest.mark.parametrize("algo", ["td3", "ddpg"])
    def test_of_deterministic_actors(self, algo):
        """That of Gaussians with the standard deviation 0.1."""
        model = make_model(algo)
        model.start_regularization()
        before = model.actor(OBSERVATIONS)
        move(model.actor)
        first, second = (th.distributions.Normal(mean, 0.1) for mean in (model.actor(OBSERVATIONS), before))
        expected = th.distributions.kl_divergence(first, second).sum(1)
        th.testing.assert_close(divergence(model, OBSERVATIONS), expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
    def test_a_strong_one_keeps_the_actor_and_none_lets_it_learn(self, algo):
        moved = {}
        for coef in (100.0, 0.0):
            model = make_model(algo, learning_rate=1e-2)
            model.learn(30)
            before = model.actor._predict(OBSERVATIONS, deterministic=True).detach()
            model.start_regularization(coef)
            model.learn(150, reset_num_timesteps=False)
            after = model.actor._predict(OBSERVATIONS, deterministic=True).detach()
            moved[coef] = (after - before).abs().mean().item()
        assert moved[100.0] < 0.05 < 0.3 < moved[0.0]

    @pytest.mark.slow
    @pytest.mark.usefixtures("without_fusion")
    @pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
    def test_gradient_of_the_actor_loss(self, algo):
        """That of the algorithm plus the divergence in units of the value, on the same batch."""
        kwargs = {"sac": {"ent_coef": 0.2}, "td3": {"policy_delay": 1}, "ddpg": {}}[algo]
        model = make_model(algo, learning_rate=0.0, **kwargs)
        model.learn(40)
        model.start_regularization(0.3)
        move(model.actor)
        batches = []
        sample = model.replay_buffer.sample
        model.replay_buffer.sample = lambda *args, **kwargs: batches.append(sample(*args, **kwargs)) or batches[-1]
        th.manual_seed(7)
        model.train(1, batch_size=32)
        found = [weights.grad.clone() for weights in model.actor.parameters()]
        [batch] = batches
        th.manual_seed(7)
        if algo == "sac":
            actions, log_prob = model.actor.action_log_prob(batch.observations)
            values = th.cat(model.critic(batch.observations, actions), dim=1)
            loss = (0.2 * log_prob[:, None] - values.amin(dim=1, keepdim=True)).mean()
        else:
            values = model.critic.q1_forward(batch.observations, model.actor(batch.observations))
            loss = -values.mean()
        plain = th.autograd.grad(loss, list(model.actor.parameters()), retain_graph=True)
        loss = loss + 0.3 * values.abs().mean().item() * divergence(model, batch.observations).mean()
        expected = th.autograd.grad(loss, list(model.actor.parameters()))
        assert max((a - b).abs().max() for a, b in zip(expected, plain, strict=True)) > 1e-3
        for ours, theirs in zip(found, expected, strict=True):
            th.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf")])
    def test_bad_coefficients(self, coef):
        with pytest.raises(ValueError, match="kl_coef must be finite and at least 0"):
            make_model().start_regularization(coef)


class Coefficients(BaseCallback):
    """The coefficient of the updates after every step, None where there was none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, float | None] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seen[self.num_timesteps] = self.model.kl_coef if self.model._n_updates else None


class TestCallback:
    @pytest.mark.slow
    def test_regularizes_from_the_first_update_and_anneals(self):
        model, coefficients = make_model(), Coefficients()
        model.learn(80, callback=[GaussianFinetuneCallback(critic_updates=3, kl_steps=40), coefficients])
        # Learning begins after more than 20 steps.
        seen = coefficients.seen
        assert all(seen[step] is None for step in range(1, 21))
        assert all(seen[step] == KL_COEF for step in range(21, 42))
        np.testing.assert_allclose(seen[51], 0.5 * KL_COEF)
        assert 0 < seen[60] < 0.1 * KL_COEF
        assert all(seen[step] == 0.0 for step in range(61, 81))

    def test_critic_learns_alone_first(self, monkeypatch):
        model = make_model()
        calls, train = [], model.train

        def watched(**kwargs):
            before = tensors(model)
            train(**kwargs)
            calls.append((kwargs["gradient_steps"], any("actor" in key for key in changed(before, tensors(model)))))

        monkeypatch.setattr(model, "train", watched)
        callback = GaussianFinetuneCallback(critic_updates=5, kl_steps=100)
        model.learn(24, callback=callback)
        assert calls == [(5, False), (1, True), (1, True), (1, True), (1, True)]
        assert model._n_updates == callback.n_updates == 5 + 4 and callback.first_update_timestep == 21

    def test_warm_up_acts_with_the_policy(self, monkeypatch):
        model = make_model()
        monkeypatch.setattr(model.action_space, "sample", lambda: pytest.fail("uniform actions"))
        model.learn(30, callback=GaussianFinetuneCallback())
        assert isinstance(model.replay_buffer, FinetuneReplayBuffer) and model._n_updates == 10

    @pytest.mark.slow
    @pytest.mark.usefixtures("without_fusion")
    @pytest.mark.parametrize("algo", FINETUNE_ALGORITHMS)
    @pytest.mark.parametrize("gradient_steps", [1, -1])
    def test_from_scratch_the_callback_changes_nothing(self, algo, gradient_steps):
        kwargs = {"replay_buffer_class": FinetuneReplayBuffer, "gradient_steps": gradient_steps, "train_freq": 3}
        plain = make_model(algo, PLAIN, **kwargs).learn(90)
        ours = make_model(algo, **kwargs).learn(90, callback=GaussianFinetuneCallback(uniform=True))
        assert not changed(tensors(plain), tensors(ours)) and plain._n_updates == ours._n_updates > 20
        np.testing.assert_array_equal(plain.replay_buffer.actions, ours.replay_buffer.actions)

    @pytest.mark.slow
    def test_settings_are_those_of_the_user_whenever_the_model_is_saved(self, tmp_path):
        model = make_model(gradient_steps=3)
        checkpoints = CheckpointCallback(15, tmp_path)
        model.learn(40, callback=[GaussianFinetuneCallback(kl_steps=1000), checkpoints])
        for step in (15, 30):
            loaded = SAC.load(tmp_path / f"rl_model_{step}_steps", device="cpu")
            assert (loaded.gradient_steps, loaded.learning_starts) == (3, 20)
        assert (model.gradient_steps, model.learning_starts, model.kl_coef) == (3, 20, 0.0)

    @pytest.mark.slow
    def test_without_a_reward_signal_it_warns_and_learns_nothing(self):
        model = make_model(scale=0.0)
        before = tensors(model)
        callback = GaussianFinetuneCallback()
        with pytest.warns(UserWarning, match=r"no reward signal.*--reuse-data"):
            model.learn(40, callback=callback)
        assert not callback.saw_reward and callback.first_update_timestep is None and not changed(before, tensors(model))
        with pytest.warns(UserWarning, match="no reward signal"):
            model.learn(40, callback=GaussianFinetuneCallback(uniform=True))
        assert model._n_updates == 20, "an agent from scratch learns all the same"
        model = make_model()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(40, callback=callback)
        assert callback.saw_reward and callback.first_update_timestep == 21

    @pytest.mark.parametrize("name", ["offline_updates", "critic_updates", "kl_steps"])
    def test_bad_numbers(self, name):
        with pytest.raises(ValueError, match=f"{name} must be .*-1"):
            GaussianFinetuneCallback(**{name: -1})

    def test_refusals(self):
        dqn = DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=100, learning_starts=5)
        with pytest.raises(ValueError, match="finite bounds"):
            dqn.learn(40, callback=GaussianFinetuneCallback())
        for kwargs in ({"kl_steps": 20}, {"critic_updates": 20}):
            with pytest.raises(ValueError, match=r"need FinetuneSAC, FinetuneTD3, FinetuneDDPG .* got SAC"):
                make_model("sac", PLAIN).learn(40, callback=GaussianFinetuneCallback(**kwargs))
        with pytest.raises(ValueError, match="gradient_steps=0"):
            make_model(gradient_steps=0).learn(40, callback=GaussianFinetuneCallback())


@pytest.mark.parametrize("critic_only", [False, True])
def test_fused_update_is_that_of_autograd(critic_only, monkeypatch):
    """SAC with KL regularization: losses and moments of Adam after one update, ten times from the same weights."""
    models = [
        FinetuneSAC(
            "MlpPolicy", "Pendulum-v1", learning_starts=50, batch_size=32, policy_kwargs={"net_arch": [32, 16]}, seed=0
        )
        for _ in range(2)
    ]
    mine, plain = models
    monkeypatch.setattr(plain, "unsupported", lambda: "the test compares with autograd")
    for model in models:
        model.learn(60)
        model.start_regularization(0.3)
    plain.replay_buffer = mine.replay_buffer
    with th.no_grad():
        for parameter in mine.actor.parameters():  # away from the pre-trained actor, so that the divergence is not zero
            parameter.mul_(1.1)
    for step in range(10):
        plain.set_parameters(deepcopy(mine.get_parameters()))
        plain.log_ent_coef.data.copy_(mine.log_ent_coef.data)
        plain.pretrained_actor.load_state_dict(mine.pretrained_actor.state_dict())
        for model in models:
            th.manual_seed(step)
            np.random.seed(step)
            model.train(1, 32, critic_only=critic_only)
        logs = [model.logger.name_to_value for model in models]
        assert [log["train/fused"] for log in logs] == [1.0, 0.0]
        names = ["critic_loss", "ent_coef"] + ([] if critic_only else ["actor_loss", "ent_coef_loss"])
        for name in names:
            assert logs[0][f"train/{name}"] == pytest.approx(logs[1][f"train/{name}"], rel=1e-4, abs=1e-5), name
        for network in ("actor", "critic"):
            states = [getattr(model, network).optimizer.state_dict()["state"] for model in models]
            for key, state in states[1].items():
                scale = state["exp_avg"].abs().max().item()
                th.testing.assert_close(states[0][key]["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-4 * scale + 1e-8)
