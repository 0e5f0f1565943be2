"""Several seeds in one process against each seed alone."""

import random

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_exdm import FusedSAC, RunFolder, pretrain, pretrain_seeds
from sb3_exdm.algorithms.stacked import RandomState, learn_together

SETTINGS = {
    "n_envs": 2,
    "policy_steps": 5,
    "progress_bar": False,
    "device": "cpu",
    "algo_kwargs": {"learning_starts": 60, "batch_size": 16, "gradient_steps": 2, "policy_kwargs": {"net_arch": [16, 16]}},
}
MAZE = "Maze2d-SquareA-v0"


@pytest.mark.parametrize("seeds", [[3, 5], [4]])
def test_runs_are_those_of_each_seed_alone(seeds, tmp_path):
    """The same transitions until rounding grows; after few updates it has not."""
    before = random.getstate(), np.random.get_state()[1].copy(), th.get_rng_state()
    together = pretrain_seeds(MAZE, seeds, 120, out=tmp_path, **SETTINGS)
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    assert th.equal(th.get_rng_state(), before[2])
    for seed, run in zip(seeds, together, strict=True):
        assert run.path == tmp_path / f"seed-{seed}" and run.summary["seed"] == seed
        alone = pretrain(MAZE, 120, seed=seed, **SETTINGS)
        folder = RunFolder(run.path)
        transitions = folder.transitions()
        expected = alone.model.replay_buffer.observations.reshape(120, -1)  # full
        np.testing.assert_allclose(transitions["observations"], expected, atol=1e-4)
        assert run.model._n_updates == alone.model._n_updates == 60
        for key, value in alone.model.policy.state_dict().items():
            th.testing.assert_close(run.model.policy.state_dict()[key], value, rtol=1e-2, atol=1e-3)
        assert run.summary["coverage"] == pytest.approx(alone.summary["coverage"], abs=0.02)
        loaded = folder.load_model()
        observations = expected[:5]
        np.testing.assert_array_equal(
            loaded.predict(observations, deterministic=True)[0], run.model.predict(observations, deterministic=True)[0]
        )


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        ([], {}, "at least one seed"),
        ([1, 1], {}, "only once"),
        ([1, 2], {"algo": "td3"}, 'only with algo="sac"'),
        ([1, 2], {"algo_kwargs": {"use_sde": True}}, "gSDE"),
        ([1, 2], {"algo_kwargs": {"gradient_steps": -1}}, "gradient_steps of at least 1"),
    ],
)
def test_refusals(seeds, settings, message):
    with pytest.raises(ValueError, match=message):
        pretrain_seeds(MAZE, seeds, 20, **{**SETTINGS, **settings})


def test_models_of_different_sizes_are_refused():
    models = [FusedSAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [width]}, seed=0) for width in (8, 16)]
    with pytest.raises(ValueError, match="same spaces and networks"):
        learn_together(models, 10, [CallbackList([])] * 2, [RandomState(0), RandomState(1)])


class StopsAt(BaseCallback):
    """Stops the training after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def test_a_callback_stops_all_models():
    models = [
        FusedSAC("MlpPolicy", "Pendulum-v1", learning_starts=5, policy_kwargs={"net_arch": [8]}, seed=0) for _ in range(2)
    ]
    learn_together(models, 100, [StopsAt(20), StopsAt(1000)], [RandomState(0), RandomState(1)])
    assert models[0].num_timesteps == 20 and models[1].num_timesteps <= 20
