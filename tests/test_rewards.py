"""Every registered intrinsic reward through the protocol they share, and rewards that users register."""

import copy
import importlib
import importlib.util
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.stats import spearmanr
from stable_baselines3 import SAC

from sb3_exdm import (
    REWARDS,
    FittedReward,
    IntrinsicReward,
    ScoreModel,
    ScoreRewardReplayBuffer,
    ScoreRewardWrapper,
    load_reward,
    make_reward,
    register_reward,
)
from sb3_exdm.common.serialization import ArtifactError, save_tree
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, scores_next_state, transformed_reward
from sb3_exdm.rewards.features import MAX_DIM
from sb3_exdm.rewards.rnd import RNDReward

OBSERVATIONS = spaces.Box(-3.0, 3.0, (2,))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
# Small, so that the whole file takes seconds.
SMALL = {
    "score": dict(net_arch=[16]),
    "edp": dict(net_arch=[16]),
    "exdm-paper": dict(net_arch=[16], n_draws=4),
    "rnd": dict(net_arch=[16], embedding_dim=8),
    "apt": dict(n_references=64, n_neighbors=4),
    "count": dict(bin_width=0.1, n_slots=2**10),
    "zero": {},
}
ALL = pytest.mark.parametrize("name", sorted(SMALL))


def make(name: str, seed: int | None = 0, **kwargs) -> IntrinsicReward:
    return make_reward(name, OBSERVATIONS, ACTIONS, seed=seed, device="cpu", **{**SMALL[name], "batch_size": 32, **kwargs})


def states(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(n, 2)).clip(-3, 3)
    # The action depends on the state, so that a model of it has something to learn.
    return observations.astype(np.float32), np.tanh(observations + rng.normal(size=(n, 2)) * 0.3).astype(np.float32)


def everything(model: FittedReward) -> dict:
    """Everything that is learned or random in a model."""
    generators = {key: value.get_state() for key, value in _generators(model).items()}
    return copy.deepcopy({"weights": dict(model.state_dict()), "extra": model._extra_state(), "generators": generators})


def _generators(model: th.nn.Module) -> dict[str, th.Generator]:
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, th.Generator)
    }


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, th.Tensor):
        assert th.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


# The protocol ---------------------------------------------------------------------------------------------------------


def test_all_built_in_rewards_are_tested_here():
    built_in = {name for name, reward in REWARDS.items() if reward.__module__.startswith("sb3_exdm.")}
    assert built_in == set(SMALL) and all(REWARDS[name].name == name for name in built_in)


@ALL
def test_fit_scores_and_rewards_are_finite(name):
    model = make(name)
    assert isinstance(model, IntrinsicReward)
    for n in (1, 7, 64):
        logs = model.fit(*states(n), gradient_steps=2)
        assert all(isinstance(value, float) and np.isfinite(value) for value in logs.values()), logs
        for result in (model.score(*states(9)), model.reward(*states(9))):
            assert result.shape == (9,) and result.dtype == np.float32 and np.isfinite(result).all()
    assert model.score(*states(0)).shape == (0,)


@ALL
def test_scoring_changes_nothing(name):
    model = make(name)
    model.fit(*states(64), gradient_steps=3)
    before, global_state = everything(model), th.get_rng_state()
    first = model.score(*states(50)), model.reward(*states(50))
    model.score(*states(5000, seed=1))
    second = model.score(*states(50)), model.reward(*states(50))
    np.testing.assert_array_equal(first, second)
    assert_equal(before, everything(model))
    assert th.equal(global_state, th.get_rng_state())


@ALL
def test_score_of_a_state_does_not_depend_on_its_company(name):
    model = make(name)
    model.fit(*states(64), gradient_steps=3)
    observations, actions = states(40)
    alone = np.concatenate([model.score(observations[i : i + 1], actions[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(model.score(observations, actions), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"zero"}))
def test_fit_changes_the_score(name):
    model = make(name)
    model.fit(*states(64))
    before = model.score(*states(50))
    model.fit(*states(64, seed=1), gradient_steps=5)
    assert np.abs(model.score(*states(50)) - before).max() > 1e-4


@ALL
def test_reward_is_standardized(name):
    model = make(name)
    # These errors fall fast at first, faster than their moments follow.
    for seed in range(200 if name in ("rnd", "edp") else 60):
        model.fit(*states(64, seed))
    reward = model.reward(*states(500))
    if name == "zero":
        assert not reward.any()
    elif name == "exdm-paper":  # divided by the standard deviation, not centered
        assert reward.min() > 0.0 and 0.5 < reward.std() < 2.0
    else:
        assert abs(reward.mean()) < 0.5 and 0.4 < reward.std() < 2.5


def test_rewards_of_apt_are_centered_at_states_that_are_not_remembered():
    """A remembered state is its own nearest neighbor; with a mean over such states, all others had rewards around 1."""
    model = make_reward("apt", OBSERVATIONS, None, n_neighbors=3, seed=0, device="cpu")
    for seed in range(60):
        model.fit(states(256, seed)[0])
    reward = model.reward(states(2000, 1000)[0])
    assert abs(reward.mean()) < 0.2 and 0.8 < reward.std() < 1.25
    assert model.reward(states(256, 59)[0]).mean() < -0.5


@ALL
def test_transformed_reward_is_never_negative(name):
    """Otherwise an agent would be rewarded for ending its episodes."""
    model = make(name)
    constant = {"exdm-paper": 0.0, "zero": 0.0}.get(name, 1.0)
    assert transformed_reward(model, *states(50)).tolist() == [constant] * 50  # average novelty before the first fit
    model.fit(*states(64), gradient_steps=3)
    reward = transformed_reward(model, *states(50))
    np.testing.assert_array_equal(reward, REWARD_TRANSFORMS[model.reward_transform](model.reward_tensor(*states(50))))
    assert reward.min() >= 0.0
    np.testing.assert_array_equal(transformed_reward(model, *states(50), "identity"), model.reward(*states(50)))


@ALL
def test_twins_with_one_seed_are_equal_and_leave_the_global_generators_alone(name):
    def scores(seed):
        model = make(name, seed)
        for i in range(3):
            model.fit(*states(64, seed=i), gradient_steps=2)
        return model.score(*states(50))

    th.manual_seed(0)
    global_states = th.get_rng_state(), np.random.get_state()[1].tolist()
    first = scores(seed=5)
    assert th.equal(global_states[0], th.get_rng_state()) and global_states[1] == np.random.get_state()[1].tolist()
    th.manual_seed(1)
    np.testing.assert_array_equal(first, scores(seed=5))
    if name in ("score", "edp", "exdm-paper", "rnd"):
        assert np.abs(first - scores(seed=6)).max() > 1e-6


# Saving ---------------------------------------------------------------------------------------------------------------


@ALL
def test_loaded_model_goes_on_where_the_saved_one_stopped(name, tmp_path):
    model = make(name, seed=None)
    model.fit(*states(64), gradient_steps=20)  # long enough for the noise range to change
    model.save(tmp_path / "reward.safetensors")
    loaded = load_reward(tmp_path / "reward.safetensors", device="cpu")
    assert type(loaded) is type(model) and loaded.seed == model.seed
    assert_equal(everything(model), everything(loaded))
    np.testing.assert_array_equal(model.reward(*states(50)), loaded.reward(*states(50)))
    for seed in range(3):
        assert model.fit(*states(64, seed), gradient_steps=7) == loaded.fit(*states(64, seed), gradient_steps=7)
    np.testing.assert_array_equal(model.reward(*states(50)), loaded.reward(*states(50)))


def test_every_argument_survives_saving(tmp_path):
    """An argument that is not saved would silently fall back to its default."""
    changed = {
        "score": dict(n_levels=2, n_noises=2, net_arch=[8, 8], n_frequencies=1, learning_rate=0.1, ema_rate=0.5),
        "edp": dict(n_levels=3, n_frequencies=2),
        "exdm-paper": dict(n_draws=3, net_arch=[8], residual=False, dropout=0.2, learning_rate=0.1),
        "rnd": dict(net_arch=[8, 4], embedding_dim=3, clip_obs=2.0, n_frequencies=1, learning_rate=0.1),
        "apt": dict(n_references=16, n_neighbors=2),
        "count": dict(bin_width=0.3, bonus="inverse_sqrt", forgetting=0.1, n_slots=16),
        "zero": {},
    }
    for name, kwargs in changed.items():
        model = make_reward(name, OBSERVATIONS, ACTIONS, batch_size=7, seed=3, device="cpu", **kwargs)
        model.fit(*states(30), gradient_steps=2)
        model.save(tmp_path / name)
        loaded = load_reward(tmp_path / name, device="cpu")
        assert loaded._constructor_kwargs == model._constructor_kwargs
        assert {"batch_size": 7, "seed": 3, **kwargs}.items() <= loaded._constructor_kwargs.items()
        assert model.fit(*states(30), gradient_steps=2) == loaded.fit(*states(30), gradient_steps=2)
        np.testing.assert_array_equal(model.score(*states(9)), loaded.score(*states(9)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary([2, 2]),
        spaces.MultiBinary(4),
        spaces.Box(0, 255, (12, 12, 3), np.uint8),
        # Not in the order of the alphabet, in which a Dict space made of a dict would be.
        spaces.Dict(pose=spaces.Box(-np.inf, np.inf, (2,), np.float64), image=spaces.Box(0, 255, (36, 36, 1), np.uint8)),
    ],
    ids=lambda space: type(space).__name__,
)
@ALL
def test_every_reward_takes_every_space_and_saves_it(name, space, tmp_path):
    space.seed(0)
    samples = [space.sample() for _ in range(20)]
    is_dict = isinstance(space, spaces.Dict)
    batch = {key: np.stack([s[key] for s in samples]) for key in space.keys()} if is_dict else np.stack(samples)
    actions = np.zeros((20, 2), dtype=np.float32)
    model = make_reward(name, space, ACTIONS, seed=0, device="cpu", **SMALL[name])
    model.fit(batch, actions)
    assert np.isfinite(model.reward(batch, actions)).all()
    model.save(tmp_path / "reward")
    loaded = load_reward(tmp_path / "reward", device="cpu")
    assert loaded.observation_space == space
    np.testing.assert_array_equal(model.score(batch, actions), loaded.score(batch, actions))


def test_files_that_cannot_be_used_are_refused_in_words(tmp_path):
    path = tmp_path / "reward.safetensors"
    with pytest.raises(ArtifactError, match="does not exist"):
        load_reward(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ArtifactError, match="damaged"):
        load_reward(path)
    model = make("rnd")
    model.fit(*states(64))
    model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        load_reward(path)
    save_tree(path, {"weights": th.zeros(2)}, kind="diffusion policy")
    with pytest.raises(ArtifactError, match=r"holds a diffusion policy, expected a.* intrinsic reward"):
        load_reward(path)
    save_tree(path, {"header": '{"reward": "curiosity"}'}, kind="intrinsic reward")
    with pytest.raises(ArtifactError, match="'curiosity', which is not registered: import the module that registers it"):
        load_reward(path)
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match=r"holds the reward 'rnd', not 'score'.*load_reward"):
        ScoreModel.load(path)
    tree = model.to_tree()
    del tree["weights"]["target.0.weight"]
    save_tree(path, tree, kind="intrinsic reward")
    with pytest.raises(ArtifactError, match=r"(?s)another version of RNDReward.*target.0.weight"):
        load_reward(path)


# What is refused ------------------------------------------------------------------------------------------------------


def test_unknown_names_and_objects_are_refused():
    with pytest.raises(ValueError, match=r"Unknown reward 'curiosity'; choose one of .*score"):
        make_reward("curiosity", OBSERVATIONS)
    with pytest.raises(ValueError, match="did you mean 'score'"):
        make_reward("scroe", OBSERVATIONS)
    for wrong in (None, 3, object(), ScoreModel):
        with pytest.raises(TypeError, match="must be a name"):
            make_reward(wrong, OBSERVATIONS)
    with pytest.raises(ValueError, match=r"reward_kwargs has no 'embeding_dim' \(did you mean 'embedding_dim'\?\)"):
        make_reward("rnd", OBSERVATIONS, embeding_dim=8)
    with pytest.raises(ValueError, match=r"reward_kwargs\['batch_size'\] must be int, got 'large'"):
        make_reward("edp", OBSERVATIONS, ACTIONS, batch_size="large")
    with pytest.raises(ValueError, match=r"reward_kwargs\['kind'\] must be 'action', got 'state'"):
        make_reward("edp", OBSERVATIONS, ACTIONS, kind="state")


def test_existing_reward_is_passed_through_unless_it_does_not_fit():
    model = make("rnd")
    assert make_reward(model, OBSERVATIONS, spaces.Discrete(3)) is model  # it does not look at actions
    with pytest.raises(ValueError, match=r"\['seed'\] would be ignored"):
        make_reward(model, OBSERVATIONS, ACTIONS, seed=3)
    with pytest.raises(ValueError, match="built for the observation_space"):
        make_reward(model, spaces.Box(-1, 1, (3,)), ACTIONS)
    with pytest.raises(ValueError, match="built for the action_space"):
        make_reward(make("edp"), OBSERVATIONS, spaces.Discrete(3))
    with pytest.raises(ValueError, match="depends on actions: pass action_space"):
        make_reward("edp", OBSERVATIONS)


@ALL
def test_bad_input_is_refused(name):
    model = make(name)
    observations, actions = states(4)
    bad = observations.copy()
    bad[1, 0] = np.nan
    for method in (model.fit, model.score, model.reward):
        with pytest.raises(ValueError, match="holds nan"):
            method(bad, actions)
        with pytest.raises(ValueError, match="leading axis"):
            method(observations[0], actions)
        with pytest.raises(ValueError, match=r"shape \(n, 2\), got \(4, 3\)"):
            method(np.zeros((4, 3)), actions)
        if model.needs_actions:
            with pytest.raises(ValueError, match="pass them beside"):
                method(observations)
            with pytest.raises(ValueError, match="4 observations but 3 actions"):
                method(observations, actions[:3])
    with pytest.raises(ValueError, match="at least one observation"):
        model.fit(*states(0))
    with pytest.raises(ValueError, match="gradient_steps"):
        model.fit(observations, actions, gradient_steps=-1)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("rnd", dict(embedding_dim=0), "embedding_dim"),
        ("rnd", dict(clip_obs=float("nan")), "clip_obs"),
        ("apt", dict(n_neighbors=65), "n_neighbors"),
        ("count", dict(bin_width=0.0), "bin_width"),
        ("count", dict(bonus="linear"), "'linear'"),
        ("count", dict(forgetting=1.0), "forgetting"),
        ("count", dict(n_slots=100), "power of two"),
        ("rnd", dict(n_frequencies=-1), "n_frequencies"),
        ("edp", dict(n_frequencies=-1), "n_frequencies"),
        ("exdm-paper", dict(n_draws=0), "n_draws"),
        ("exdm-paper", dict(dropout=1.0), "dropout"),
        ("score", dict(n_noises=3), "n_noises"),
        ("zero", dict(batch_size=0), "batch_size"),
    ],
)
def test_bad_arguments_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(name, **kwargs)


# Rewards of users -----------------------------------------------------------------------------------------------------

OWN_REWARD = """
import torch as th
from sb3_exdm import FittedReward, register_reward


@register_reward("kernel")
class KernelReward(FittedReward):
    name = "kernel"

    def __init__(self, observation_space, action_space=None, *, bandwidth: float = 1.0, **kwargs):
        super().__init__(observation_space, action_space, **kwargs)
        self.bandwidth = bandwidth
        self.register_buffer("center", th.zeros(self.observation_dim, device=self.device))

    def _fit_batch(self, observations, actions):
        self.center.lerp_(observations.mean(dim=0), 0.1)
        return {"kernel_spread": observations.std().item()}

    def _score_batch(self, observations, actions):
        return 1.0 - th.exp(-((observations - self.center) ** 2).sum(dim=1) / self.bandwidth)


@register_reward("plain")
class PlainReward(FittedReward):
    def _fit_batch(self, observations, actions):
        return {}

    def _score_batch(self, observations, actions):
        return observations.norm(dim=1)
"""


@pytest.fixture
def own_rewards(tmp_path):
    """A user's module that registers two rewards."""
    path = tmp_path / "own_rewards.py"
    path.write_text(OWN_REWARD)
    spec = importlib.util.spec_from_file_location("own_rewards", path)
    sys.modules["own_rewards"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_rewards"]
    REWARDS.unregister("kernel")
    REWARDS.unregister("plain")


@pytest.mark.parametrize(("name", "kwargs"), [("kernel", dict(bandwidth=0.5)), ("plain", {})])
def test_own_reward_works_in_wrapper_and_buffer_and_is_saved_and_loaded(own_rewards, name, kwargs, tmp_path):
    env = ScoreRewardWrapper(gym.make("Pendulum-v1"), name, learning_starts=20, train_freq=8, reward_kwargs=kwargs, seed=0)
    env.reset(seed=0)
    env.action_space.seed(0)
    rewards = [env.step(env.action_space.sample())[1] for _ in range(40)]
    assert set(rewards[:19]) == {1.0} and len(set(rewards[20:])) > 5
    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        replay_buffer_class=ScoreRewardReplayBuffer,
        replay_buffer_kwargs=dict(reward=name, reward_kwargs=kwargs),
        policy_kwargs=dict(net_arch=[8]),
        learning_starts=20,
        device="cpu",
    ).learn(40)
    for reward in (env.reward_model, model.replay_buffer.reward_model):
        assert type(reward) is REWARDS[name] and reward.fitted
        reward.save(tmp_path / "reward")
        loaded = load_reward(tmp_path / "reward", device="cpu")
        assert type(loaded) is type(reward) and loaded._constructor_kwargs.items() >= kwargs.items()
        batch = model.replay_buffer.next_observations[:40, 0]
        np.testing.assert_array_equal(reward.reward(batch), loaded.reward(batch))
        assert reward.fit(batch) == loaded.fit(batch)
        np.testing.assert_array_equal(reward.reward(batch), loaded.reward(batch))
    REWARDS.unregister(name)
    with pytest.raises(ArtifactError, match=f"{name!r}, which is not registered"):
        load_reward(tmp_path / "reward")


def test_registration_refuses_what_could_not_be_loaded(own_rewards, tmp_path):
    with pytest.raises(ValueError, match="There is a reward 'rnd' already"):
        register_reward("rnd")(lambda observation_space, action_space=None, **kwargs: None)
    with pytest.raises(ValueError, match=r"PlainReward.* has the name 'plain' but is registered as 'other'"):
        register_reward("other")(own_rewards.PlainReward)
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (FittedReward,), {"name": "incomplete"})(OBSERVATIONS)


def test_subclass_of_a_reward_gets_the_name_it_is_registered_with(tmp_path):
    try:

        @register_reward("shallow-rnd")
        class ShallowRND(RNDReward):
            def __init__(self, observation_space, action_space=None, width: int = 8, **kwargs):
                super().__init__(observation_space, action_space, net_arch=[width], **kwargs)

        model = ShallowRND(OBSERVATIONS, None, 4, clip_obs=2.0, seed=1, device="cpu")
        assert RNDReward.name == "rnd" and model.name == "shallow-rnd"
        assert model._constructor_kwargs == {"width": 4, "clip_obs": 2.0, "seed": 1}
        model.save(tmp_path / "reward")
        loaded = load_reward(tmp_path / "reward", device="cpu")
        assert type(loaded) is ShallowRND and loaded.target[0].out_features == 4 and loaded.clip_obs == 2.0
    finally:
        REWARDS.unregister("shallow-rnd")


def test_function_can_be_registered():
    try:

        @register_reward("wide-rnd")
        def wide_rnd(observation_space, action_space=None, **kwargs) -> IntrinsicReward:
            return RNDReward(observation_space, action_space, net_arch=[256], **kwargs)

        model = make_reward("wide-rnd", OBSERVATIONS, seed=0, device="cpu")
        assert isinstance(model, RNDReward) and model.target[0].out_features == 256
        assert ScoreRewardWrapper(gym.make("Pendulum-v1"), "wide-rnd").reward_model.target[0].out_features == 256
    finally:
        REWARDS.unregister("wide-rnd")


# What they measure ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("score", 0.85), ("rnd", 0.6), ("apt", 0.85), ("count", 0.8)])
def test_score_ranks_states_by_their_rarity(name, least):
    """Against the exact density of a mixture whose parts have very different weights."""
    rng = np.random.default_rng(0)
    centers = np.array([[-1.5, -1.5], [1.5, -1.5], [0.0, 1.5]])
    weights, std = np.array([0.7, 0.25, 0.05]), 0.4

    def draw(n: int) -> np.ndarray:
        return centers[rng.choice(3, n, p=weights)] + std * rng.normal(size=(n, 2))

    # Not the small sizes of above: this is about the defaults.
    kwargs = dict(bin_width=0.04) if name == "count" else {}
    model = make_reward(name, spaces.Box(-np.inf, np.inf, (2,)), None, seed=0, device="cpu", **kwargs)
    for _ in range(300):
        model.fit(draw(256))
    sample = draw(1000)
    density = weights @ np.exp(-((sample[None] - centers[:, None]) ** 2).sum(-1) / (2 * std**2))
    assert spearmanr(model.score(sample), -density).statistic > least


def test_apt_is_the_distance_to_the_neighbors():
    model = make_reward("apt", OBSERVATIONS, None, n_references=4, n_neighbors=2, seed=0, device="cpu")
    assert model.score(np.zeros((1, 2))).tolist() == [0.0]  # nothing to compare with
    model.fit(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
    scale = model.whitening.std.numpy()
    expected = np.log1p(np.mean([0.0, 1.0 / scale[0]]))
    np.testing.assert_allclose(model.score(np.array([[0.0, 0.0]])), expected, rtol=1e-5)
    model.fit(np.full((8, 2), 2.0))  # more than there is room for: the old ones are gone
    np.testing.assert_allclose(model.score(np.full((1, 2), 2.0)), 0.0, atol=1e-6)


def test_count_counts():
    space = spaces.Box(0.0, 1.0, (2,))
    model = make_reward("count", space, None, bin_width=0.1, forgetting=0.0, bonus="inverse_sqrt", seed=0, device="cpu")
    model.fit(np.array([[0.05, 0.05]] * 3 + [[0.95, 1.0]], dtype=np.float32))
    scores = model.score(np.array([[0.01, 0.09], [0.11, 0.05], [0.99, 0.91], [1.0, 1.0]]))
    np.testing.assert_allclose(scores, [4**-0.5, 1.0, 2**-0.5, 2**-0.5])  # the upper bound belongs to the last cell
    logarithm = make_reward("count", space, None, bin_width=0.1, forgetting=0.5, seed=0, device="cpu")
    logarithm.fit(np.full((4, 2), 0.5))
    logarithm.fit(np.full((2, 2), 0.7))
    # Half of the first four is forgotten: 2 + 2 in all.
    np.testing.assert_allclose(logarithm.score(np.array([[0.55, 0.55]])), np.log(5.0 / 3.0), rtol=1e-6)


def test_count_starts_over_when_the_scale_of_an_unbounded_space_changes():
    model = make_reward("count", spaces.Box(-np.inf, np.inf, (1,)), None, bonus="inverse_sqrt", seed=0, device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(5):
        model.fit(rng.normal(size=(256, 1)))
    assert model.score(np.zeros((1, 1))) < 0.3
    for _ in range(50):
        model.fit(1000.0 + 100.0 * rng.normal(size=(256, 1)))
    assert model.scale.item() == pytest.approx(4.0 * model.whitening.std.item(), rel=1.0)
    assert model.score(np.zeros((1, 1))) == 1.0


def test_paper_estimator_draws_anew_for_every_state_and_after_every_fit():
    model = make("exdm-paper", n_draws=2000)
    uniform = model._uniform(th.tensor([[0.5, 0.5], [0.5, 0.5], [0.5000001, 0.5]]), 3)  # (3, n_draws, 3)
    assert th.equal(uniform[0], uniform[1])
    assert abs(np.corrcoef(uniform[0].flatten(), uniform[2].flatten())[0, 1]) < 0.05
    for column in uniform[0].T:
        assert 0.0 < column.min() and column.max() < 1.0
        assert column.mean().item() == pytest.approx(0.5, abs=0.03)
        assert column.var().item() == pytest.approx(1 / 12, abs=0.01)
    before = model._uniform(th.zeros(1, 2), 3)
    model.fit(*states(8))
    assert abs(np.corrcoef(before.flatten(), model._uniform(th.zeros(1, 2), 3).flatten())[0, 1]) < 0.05


def test_paper_estimator_is_unbiased():
    """A network that predicts zero errs by the squared length of the noise, whose mean is the dimension."""
    model = make("exdm-paper", n_draws=500)
    model.network.layers[-1].weight.data.zero_()
    model.network.layers[-1].bias.data.zero_()
    assert model.score(*states(20)).mean() == pytest.approx(2.0, rel=0.05)


def test_paper_dropout_is_random_in_states_and_fits_but_a_function_of_both():
    model = make("exdm-paper", dropout=0.3)
    words = th.tensor([[0.5, 0.5], [0.5, 0.5], [0.5000001, 0.5]])
    masks = model._hash.masks(words, 10_001, 0.3, th.tensor(1))  # (3, n_units)
    assert th.equal(masks[0], masks[1])
    assert masks.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (masks == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert abs(np.corrcoef(masks[0], masks[2])[0, 1]) < 0.05
    assert abs(np.corrcoef(masks[0], model._hash.masks(words, 10_001, 0.3, th.tensor(3))[0])[0, 1]) < 0.05
    scores = model.score(*states(20))
    model.dropout = 0.0
    assert np.abs(model.score(*states(20)) - scores).max() > 1e-3


def test_paper_network_is_the_official_one():
    """Number of weights of the authors' network for observations of four dimensions, counted layer by layer."""
    model = make_reward("exdm-paper", spaces.Box(-1, 1, (4,)), seed=0, device="cpu")
    time = 64 * 128 + 128 + 128 * 128 + 128
    block = 2 * 256 + 256 * 1024 + 1024 + 1024 * 256 + 256
    ends = (4 + 128) * 256 + 256 + 256 * 4 + 4
    assert sum(weights.numel() for weights in model.network.parameters()) == time + 3 * block + ends
    assert (model.n_draws, model.dropout, model.optimizer.defaults["lr"]) == (20, 0.1, 1e-4)
    # Bounded outputs predict no noise where there is hardly any: the error there is that of a prediction of zero.
    x_t, t, sigma = th.randn(5, 4), th.full((5,), 1e-3), th.full((5,), 1e-2)
    assert model.network(x_t, t, sigma).abs().max() < 0.05


def test_paper_reward_is_divided_by_the_deviation_over_all_fits():
    model = make("exdm-paper", dropout=0.0)
    scores = [np.concatenate([model.score(*states(64, seed))]) for seed in range(2)]
    model.score_moments.update(th.as_tensor(scores[0]).unsqueeze(1))
    for _ in range(200):
        model.score_moments.update(th.as_tensor(scores[1]).unsqueeze(1))
    variance = (scores[0].var() + 200 * scores[1].var()) / 201 + 200 / 201**2 * (scores[0].mean() - scores[1].mean()) ** 2
    assert model.score_moments.std.item() == pytest.approx(variance**0.5, rel=1e-3)
    np.testing.assert_allclose(model.reward(*states(9)), model.score(*states(9)) / variance**0.5, rtol=1e-3)


# The state of a transition that is scored, and the input of the networks -----------------------------------------------


def test_state_that_is_scored():
    class Foreign:
        needs_actions = False

    expected = {"edp": False, "exdm-paper": False}
    for name in SMALL:
        assert scores_next_state(make(name)) is expected.get(name, True)
    assert scores_next_state(Foreign()) is True


@pytest.mark.parametrize("name", ["score", "edp", "rnd"])
def test_networks_get_sines_and_cosines_in_low_dimension_alone(name):
    def octaves(dim: int, n_frequencies: int | None = None) -> int:
        space = spaces.Box(-np.inf, np.inf, (dim,))
        model = make_reward(name, space, ACTIONS, n_frequencies=n_frequencies, seed=0, device="cpu")
        if name == "rnd":
            assert model.target[0].in_features == model.predictor[0].in_features == model.features.width
            return len(model.features.frequencies)
        if name == "edp":
            assert model.model.condition_dim == model.condition_features.width
            return len(model.condition_features.frequencies)
        return len(model.model.network.features.frequencies)

    assert octaves(2) == octaves(MAX_DIM) == 5
    assert octaves(MAX_DIM + 1) == octaves(2, 0) == 0
    assert octaves(40, 2) == 2


def test_rewards_of_earlier_versions_are_refused_in_words(tmp_path):
    for name, missing in (("rnd", "features.frequencies"), ("edp", "condition_features.frequencies")):
        tree = make(name).to_tree()
        del tree["weights"][missing]
        save_tree(tmp_path / name, tree, kind="intrinsic reward")
        with pytest.raises(ArtifactError, match=rf"(?s)another version of .*{missing}"):
            load_reward(tmp_path / name)
    tree = make("rnd").to_tree()
    tree["header"] = tree["header"].replace('"clip_obs"', '"clip"')
    save_tree(tmp_path / "rnd", tree, kind="intrinsic reward")
    with pytest.raises(ArtifactError, match=r"another version of RNDReward.*'clip'"):
        load_reward(tmp_path / "rnd")


# The ablation between exdm-paper and score ------------------------------------------------------------------------------


@pytest.fixture
def ablation():
    """The experiment, whose reward is registered only while it is tested."""
    module = importlib.import_module("examples.experiments.ablation")
    if "ablation" not in REWARDS:
        register_reward("ablation")(module.AblationReward)
    yield module
    REWARDS.unregister("ablation")


def test_ablation_starts_at_the_paper_and_ends_at_the_score(ablation):
    batches = [states(64, seed)[0] for seed in range(40)]  # long enough for the noise range to change
    for factors, name in (((), "exdm-paper"), (ablation.FACTORS, "score")):
        ours = make_reward("ablation", OBSERVATIONS, factors=factors, seed=0, device="cpu")
        theirs = make_reward(name, OBSERVATIONS, seed=0, device="cpu")
        assert ours.reward_transform == theirs.reward_transform and ours.scores_next == theirs.scores_next
        for batch in batches if factors else batches[:5]:
            mine, other = ours.fit(batch), theirs.fit(batch)
            assert mine["score_loss"] == pytest.approx(other["score_loss"], rel=1e-3)
        np.testing.assert_allclose(ours.reward(batches[0]), theirs.reward(batches[0]), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("n_factors", range(11))
def test_every_step_of_the_ablation_is_pure_and_saved(ablation, n_factors, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "NET_ARCH", (8, 8))
    # In an order in which the small network comes first, too.
    for factors in (ablation.FACTORS[:n_factors], ablation.FACTORS[::-1][:n_factors]):
        model = make_reward("ablation", OBSERVATIONS, factors=factors, seed=0, device="cpu")
        model.fit(states(64)[0], gradient_steps=20)
        before = everything(model)
        score = model.score(states(40)[0])
        np.testing.assert_array_equal(score, model.score(states(40)[0]))
        np.testing.assert_allclose(score[:5], model.score(states(40)[0][:5]), rtol=1e-4, atol=1e-6)
        assert_equal(before, everything(model))
        model.save(tmp_path / "reward")
        loaded = load_reward(tmp_path / "reward", device="cpu")
        assert model.fit(states(64)[0]) == loaded.fit(states(64)[0])
        np.testing.assert_array_equal(model.reward(states(40)[0]), loaded.reward(states(40)[0]))


def test_chain_of_the_ablation(ablation, tmp_path):
    benchmark = ablation.AblationBenchmark(out=tmp_path, mazes=("SquareA", "SquareC"), seeds=(3, 5), steps=10)
    runs = benchmark.plan()
    assert len({run.folder for run in runs}) == len(runs) == 2 * 2 * 11
    first, second, *_, last = runs[:11]
    assert (first.config.reward, last.config.reward) == ("exdm-paper", "score")
    assert second.config.reward_kwargs == {"factors": ["reached"]}
    assert {run.config.seed for run in runs} == {3, 5} and {run.config.total_timesteps for run in runs} == {10}
    reordered = ablation.AblationBenchmark(out=tmp_path, factors=tuple(f for f in ablation.FACTORS[::-1] if f != "dropout"))
    assert list(reordered.chain)[-1] == "+ reached = score" and len(reordered.chain) == 10
    with pytest.raises(ValueError, match="Every factor can be added once"):
        ablation.AblationBenchmark(out=tmp_path, factors=("bank", "bank")).validate()
    figures = ablation.pd.DataFrame(
        [
            {"task": "SquareA", "method": method, "seed": seed, "coverage": coverage + 0.1 * seed}
            for method, coverage in (("exdm-paper", 0.2), ("+ bank", 0.5))
            for seed in (0, 1)
        ]
    )
    assert ablation._changes(figures).loc["+ bank", "SquareA"].startswith("+0.300")


def test_ablation_refuses_unknown_factors_and_many_dimensions(ablation):
    with pytest.raises(ValueError, match=r"Unknown factor 'banks' \(did you mean 'bank'\?\)"):
        make_reward("ablation", OBSERVATIONS, factors=["banks"])
    with pytest.raises(ValueError, match=f"at most {MAX_DIM} dimensions"):
        make_reward("ablation", spaces.Box(-1, 1, (40,)))
