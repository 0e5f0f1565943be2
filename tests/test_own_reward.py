"""A reward in a user's own file: registered, trained through the command line, saved, loaded and plotted."""

import json
import sys

import numpy as np
import pytest

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError

MODULE = '''
import torch as th
import sb3_exdm

@sb3_exdm.register_reward("distance")
class DistanceReward(sb3_exdm.FittedReward):
    """Distance from a running mean of the visited states."""

    name = "distance"

    def __init__(self, observation_space, action_space=None, *, power: float = 1.0, **kwargs):
        super().__init__(observation_space, action_space, **kwargs)
        self.power = power
        self.register_buffer("mean", th.zeros(self.observation_dim))

    def _fit_batch(self, observations, actions):
        self.mean.lerp_(observations.mean(dim=0), 0.1)
        return {"distance_loss": float(self.mean.norm())}

    def _score_batch(self, observations, actions):
        return (observations - self.mean).norm(dim=1) ** self.power
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_rewards.py").write_text(MODULE)
    yield "my_rewards"
    sb3_exdm.REWARDS.unregister("distance")
    sys.modules.pop("my_rewards", None)


@pytest.mark.slow
def test_from_the_command_line_to_the_plot(own_module, tmp_path):
    argv = ["pretrain", "--env", "Maze2d-SquareA-v0", "--steps", "2200", "--policy-steps", "10", "--quiet"]
    main([*argv, "--reward", f"{own_module}:distance", "--reward-kwargs", '{"power": 2.0}', "--out", "run"])
    folder = sb3_exdm.RunFolder("run")
    assert folder.config["reward"] == folder.summary["reward"] == "distance"
    assert folder.config["reward_kwargs"] == {"power": 2.0}
    reward = folder.load_reward(device="cpu")
    assert reward.name == "distance" and reward.power == 2.0 and reward.mean.abs().sum() > 0
    states = folder.transitions()["next_observations"][:100]
    whitened = np.clip((states - reward.whitening.mean.numpy()) / reward.whitening.std.numpy(), -20, 20)
    expected = ((whitened - reward.mean.numpy()) ** 2).sum(axis=1)
    np.testing.assert_allclose(reward.score(states), expected, rtol=1e-4)
    main(["plot", "run", "--out", "coverage.png"])
    assert (tmp_path / "coverage.png").is_file() and (tmp_path / "run" / "reward.png").is_file()
    # Without the module the file says what is missing, and nothing is imported for it.
    sb3_exdm.REWARDS.unregister("distance")
    with pytest.raises((ArtifactError, ValueError), match="distance"):
        folder.load_reward(device="cpu")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["command"] == "pretrain"
