"""The fused update of SAC against Stable-Baselines3's, and its gradients against autograd."""

from copy import deepcopy

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from sb3_exdm import FusedSAC
from sb3_exdm.common.dense import RELU, SILU, DenseLayers, FlatAdam, is_plain_adam
from sb3_exdm.envs import Maze2dSB3VecEnv
from sb3_exdm.policies.features import FourierExtractor

LOSSES = ("actor_loss", "critic_loss", "ent_coef_loss", "ent_coef")


def make(algorithm: type[SAC], env="Pendulum-v1", **kwargs) -> SAC:
    policy_kwargs = {"net_arch": [32, 16], **kwargs.pop("policy_kwargs", {})}
    settings = {"learning_starts": 50, "batch_size": 32, "buffer_size": 1000, "seed": 0, "device": "cpu", **kwargs}
    return algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, **settings)


def logged(model: SAC) -> np.ndarray:
    return np.array(
        [model.logger.name_to_value[f"train/{name}"] for name in LOSSES if f"train/{name}" in model.logger.name_to_value]
    )


@pytest.mark.parametrize("activate_last", [False, True])
@pytest.mark.parametrize(("activation", "module"), [(RELU, nn.ReLU), (SILU, nn.SiLU)])
def test_gradients_are_those_of_autograd(activation, module, activate_last):
    th.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)]
    network = nn.Sequential(layers[0], module(), layers[1], module(), layers[2], *([module()] if activate_last else []))
    x, weight = th.randn(20, 5, requires_grad=True), th.randn(20, 3)
    (network(x) * weight).sum().backward()
    optimizer = FlatAdam(th.optim.Adam(network.parameters()))
    dense = DenseLayers(layers, optimizer, activation, activate_last)
    with th.no_grad():
        done = dense.forward(x.detach())
        th.testing.assert_close(done.result, network(x))
        dense.backward(done, weight.clone())
        for parameter in network.parameters():
            th.testing.assert_close(optimizer.gradient_of(parameter), parameter.grad)
        th.testing.assert_close(dense.input_gradient(done, weight.clone(), first_column=2), x.grad[:, 2:])


@pytest.mark.parametrize("n_before", [0, 3])
def test_adam_is_that_of_pytorch(n_before):
    """Also when it takes over from PyTorch's, and PyTorch's from it."""
    th.manual_seed(0)
    mine, theirs = (nn.Linear(4, 3) for _ in range(2))
    mine.load_state_dict(theirs.state_dict())
    optimizers = [th.optim.Adam(layer.parameters(), lr=0.01, betas=(0.8, 0.95)) for layer in (mine, theirs)]
    flat = None
    for step in range(n_before + 6):
        for first, second in zip(mine.parameters(), theirs.parameters(), strict=True):
            second.grad = th.randn_like(second)
            first.grad = second.grad.clone()
        optimizers[1].step()
        if not n_before <= step < n_before + 4:
            optimizers[0].step()
            continue
        flat = flat or FlatAdam(optimizers[0])
        for parameter in mine.parameters():
            flat.gradient_of(parameter).copy_(parameter.grad)
        flat.step()
    for first, second in zip(mine.parameters(), theirs.parameters(), strict=True):
        th.testing.assert_close(first, second)
    assert flat.is_current
    optimizers[0].load_state_dict(deepcopy(optimizers[0].state_dict()))
    assert not flat.is_current
    assert not FlatAdam(deepcopy(optimizers[0])).values.data_ptr() == flat.values.data_ptr()
    copied = deepcopy(mine)
    assert next(copied.parameters()).data_ptr() != flat.values.data_ptr()


def test_other_optimizers_are_told_apart():
    mine = nn.Linear(4, 3)
    assert not is_plain_adam(th.optim.AdamW(mine.parameters())) and not is_plain_adam(
        th.optim.Adam(mine.parameters(), amsgrad=True)
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"policy_kwargs": {"n_critics": 1}},
        {"policy_kwargs": {"n_critics": 3, "net_arch": {"pi": [16], "qf": [8, 8, 8]}}},
        {"ent_coef": 0.2, "target_update_interval": 3},
        {"n_steps": 3, "gradient_steps": 2},
        {"ent_coef": "auto_0.01", "target_entropy": 0.5, "learning_rate": 3e-3},
    ],
)
def test_updates_on_the_same_batches_agree(kwargs):
    """
    Losses, moments of Adam and target networks after one update, 20 times from the same weights. The moments are linear in
    the gradients; weights themselves are not compared, as Adam makes full steps of gradients that are zero up to rounding.
    """
    theirs, mine = (make(algorithm, **kwargs).learn(60) for algorithm in (SAC, FusedSAC))
    mine.replay_buffer = theirs.replay_buffer
    for step in range(20):
        mine.set_parameters(deepcopy(theirs.get_parameters()))
        if theirs.log_ent_coef is not None:
            mine.log_ent_coef.data.copy_(theirs.log_ent_coef.data)
        for model in (theirs, mine):
            th.manual_seed(step)
            np.random.seed(step)
            model.train(1, 32)
        assert mine.logger.name_to_value["train/fused"] == 1.0
        np.testing.assert_allclose(logged(mine), logged(theirs), rtol=1e-5, atol=1e-6)
        for ours, other in ((mine.actor, theirs.actor), (mine.critic, theirs.critic)):
            states = [network.optimizer.state_dict()["state"] for network in (ours, other)]
            for key, state in states[1].items():
                scale = state["exp_avg"].abs().max().item()
                th.testing.assert_close(states[0][key]["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-4 * scale)
        for first, second in zip(mine.critic_target.parameters(), theirs.critic_target.parameters(), strict=True):
            th.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_a_running_loop_agrees_until_rounding_grows():
    """Acting, storing and learning: the same transitions and, for a while, the same losses."""
    env_kwargs = {"policy_kwargs": {"features_extractor_class": FourierExtractor, "n_critics": 1}}
    theirs, mine = (
        make(algorithm, Maze2dSB3VecEnv("SquareA", 4, seed=0), **env_kwargs).learn(240) for algorithm in (SAC, FusedSAC)
    )
    n = theirs.replay_buffer.pos
    np.testing.assert_allclose(mine.replay_buffer.observations[:n], theirs.replay_buffer.observations[:n], atol=1e-3)
    np.testing.assert_allclose(logged(mine), logged(theirs), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("first", "second"), [(SAC, FusedSAC), (FusedSAC, SAC)])
def test_files_load_in_both_directions(first, second, tmp_path):
    model = make(first).learn(80)
    model.save(tmp_path / "model")
    loaded = second.load(tmp_path / "model", env=model.get_env(), device="cpu")
    observations = np.random.default_rng(0).uniform(-1, 1, (10, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(m.predict(observations, deterministic=True)[0] for m in (model, loaded)))
    ours, theirs = (m.critic.optimizer.state_dict()["state"] for m in (loaded, model))
    assert all(th.equal(ours[key][name], theirs[key][name]) for key in theirs for name in ("step", "exp_avg", "exp_avg_sq"))
    loaded.learn(100, reset_num_timesteps=False)  # after load, the update uses the loaded networks
    assert loaded._n_updates > model._n_updates
    assert not np.allclose(*(m.predict(observations, deterministic=True)[0] for m in (model, loaded)))


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"use_sde": True}, "gSDE"),
        ({"policy_kwargs": {"activation_fn": nn.Tanh}}, "other layers"),
        ({"policy_kwargs": {"optimizer_class": th.optim.AdamW}}, "plain Adam"),
        ({"policy_kwargs": {"share_features_extractor": True}}, "shared"),
        ({"policy_kwargs": {"net_arch": []}}, "no hidden layers"),
    ],
)
def test_what_is_not_covered_runs_the_update_of_stable_baselines3(kwargs, reason):
    mine, theirs = (make(algorithm, **kwargs).learn(70) for algorithm in (FusedSAC, SAC))
    assert reason in mine.unsupported()
    assert mine.logger.name_to_value["train/fused"] == 0.0
    for key, value in theirs.policy.state_dict().items():
        assert th.equal(mine.policy.state_dict()[key], value), key


@pytest.mark.parametrize("deterministic", [False, True])
def test_actions_are_those_of_stable_baselines3(deterministic):
    model = make(FusedSAC, policy_kwargs={"n_critics": 1}).learn(60)
    observations = np.random.default_rng(0).uniform(-1, 1, (40, 3)).astype(np.float32)
    actions = []
    for predict in (model.predict, model.policy.predict):
        th.manual_seed(0)
        actions.append([predict(observations, deterministic=deterministic)[0] for _ in range(3)])
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-5)
    single = [predict(observations[0], deterministic=True)[0] for predict in (model.predict, model.policy.predict)]
    np.testing.assert_array_equal(*single)


def test_action_noise_and_learning_rate_schedule():
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    model = make(FusedSAC, action_noise=noise, learning_rate=lambda progress: 1e-3 * progress)
    model.learn(100)
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * model._current_progress_remaining)
