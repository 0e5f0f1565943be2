"""Logs for experiment trackers."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Image, configure

import sb3_exdm
from sb3_exdm.sharing.log_callback import _Writer
from tests.conftest import tiny_pretrain


class Tracker:
    """Stand-in with the signature of ``wandb.log``, ``trackio.log`` and ``mlflow.log_metrics``."""

    def __init__(self):
        self.steps, self.values = [], []

    def log(self, values, step=None):
        self.steps.append(step)
        self.values.append(values)


def test_a_recipe_logs_to_the_tracker_to_its_last_step():
    tracker = Tracker()
    run = tiny_pretrain(300, policy_steps=0, reward="zero", callback=sb3_exdm.LogCallback(tracker.log))
    assert tracker.steps[-1] == run.summary["timesteps"] and tracker.steps == sorted(tracker.steps)
    assert tracker.values[-1]["rollout/coverage"] == pytest.approx(run.summary["coverage"])
    assert all(type(value) is float for values in tracker.values for value in values.values())


def test_the_outputs_of_the_logger_stay(tmp_path):
    tracker = Tracker()
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, n_epochs=1)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    for _ in range(2):
        model.learn(32, callback=sb3_exdm.LogCallback(tracker.log))
    assert len(model.logger.output_formats) == 1
    assert tracker.steps == [32] * 4, "of the rollout, and of the update after it, twice"
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == len(tracker.steps) + 1


def test_only_numbers_are_sent():
    tracker = Tracker()
    writer = _Writer(tracker.log)
    values = {"a": np.float32(0.5), "b": 2, "text": "x", "picture": Image(np.zeros((2, 2, 3)), "HWC"), "hidden": 1}
    writer.write(values, {**dict.fromkeys(values, ()), "hidden": ("tensorboard",)}, 7)
    writer.write({"text": "x"}, {"text": ()}, 8)
    assert (tracker.values, tracker.steps) == ([{"a": 0.5, "b": 2.0}], [7])


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as started:
        tiny_pretrain(300, policy_steps=0, reward="zero", callback=sb3_exdm.LogCallback(mlflow.log_metrics))
    history = mlflow.MlflowClient().get_metric_history(started.info.run_id, "rollout/coverage")
    assert history[-1].step == 304


@pytest.mark.slow
def test_wandb(tmp_path):
    wandb = pytest.importorskip("wandb")
    with wandb.init(project="test", dir=tmp_path, mode="offline"):
        tiny_pretrain(300, policy_steps=0, reward="zero", callback=sb3_exdm.LogCallback(wandb.log))
    (written,) = tmp_path.rglob("*.wandb")
    assert b"rollout/coverage" in written.read_bytes()


@pytest.mark.slow
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    trackio.init(project="test")
    tiny_pretrain(300, policy_steps=0, reward="zero", callback=sb3_exdm.LogCallback(trackio.log))
    trackio.finish()
    assert any(tmp_path.rglob("*.db"))
