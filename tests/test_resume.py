"""Runs that are killed at any moment go on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import lru_cache
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import QUIET
from resuming import assert_same_run, in_process, run, signal_at
from stable_baselines3.common.callbacks import BaseCallback

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.runs.folder import RunFolder, RunInterrupted, RunTerminated

MAZE, ROBOT, PLAIN = "Maze2d-SquareA-v0", "URLB/walker-walk-v0", "Pendulum-v1"
TINY = {"learning_starts": 40, "batch_size": 16, "gradient_steps": 1, "policy_kwargs": {"net_arch": [16]}}
SHORT = {MAZE: {"reward_type": "dense", "max_episode_steps": 20}, ROBOT: {}, PLAIN: {}}
"""Arguments of the environments."""

PRETRAIN_MOMENTS = {
    "first fit": ("sb3_exdm.rewards.base:FittedReward.fit", 1),
    "a checkpoint begins": ("sb3_exdm.recipes.checkpointing:capture", 4),
    "rows without a checkpoint": ("sb3_exdm.runs.folder:RunFolder.save_checkpoint", 2),
    "half of a checkpoint": ("sb3_exdm.runs.folder:save_tree", 2),
    "an old checkpoint is removed": ("sb3_exdm.runs.folder:shutil.rmtree", 1),
    "a report": ("sb3_exdm.runs.folder:ProgressLog.write", 1),
    "end of training": ("sb3_exdm.exploration.callbacks:ExplorationCallback.finish", 1),
    "transitions": ("numpy:savez_compressed", 1),
    "cloning": ("sb3_exdm.recipes.pretraining:clone_agent", 1),
    "second half of cloning": ("sb3_exdm.recipes.behavior_cloning:fit_gaussian", 1),
    "drawing": ("sb3_exdm.recipes.pretraining:plot_coverage", 1),
    "summary": ("sb3_exdm.runs.folder:RunFolder.write_summary", 1),
}
FINETUNE_MOMENTS = {
    "first evaluation": ("sb3_exdm.recipes.evaluation_callback:play", 1),
    "first update": ("sb3_exdm.finetuning.schedule:FinetuneSchedule._start_learning", 1),
    "rows without a checkpoint": ("sb3_exdm.runs.folder:RunFolder.save_checkpoint", 2),
    "half of a checkpoint": ("sb3_exdm.runs.folder:save_tree", 2),
    "an old checkpoint is removed": ("sb3_exdm.runs.folder:shutil.rmtree", 1),
    "second evaluation": ("sb3_exdm.recipes.evaluation_callback:play", 2),
    "last evaluation": ("sb3_exdm.recipes.evaluation_callback:play", 3),
    "agent": ("sb3_exdm.runs.folder:RunFolder.save_models", 1),
    "distillation": ("sb3_exdm.recipes.finetuning_run:distill", 1),
    "evaluation of the distilled policy": ("sb3_exdm.recipes.finetuning_run:play", 1),
    "drawing": ("sb3_exdm.recipes.finetuning_run:plot_learning_curve", 1),
    "summary": ("sb3_exdm.runs.folder:RunFolder.write_summary", 1),
}
IN_BRIEF = [
    *(("pretrain", moment) for moment in ("half of a checkpoint", "cloning")),
    *(("finetune", moment) for moment in ("an old checkpoint is removed", "distillation")),
]


def pretrain_settings(env: str) -> dict:
    settings = {"env": env, "total_timesteps": 240, "checkpoint_freq": 80, "policy_steps": 5, "n_envs": 4, "seed": 1}
    return {**settings, "algo_kwargs": TINY, "env_kwargs": SHORT[env]}


def finetune_settings(env: str, explored: Path) -> dict:
    settings = {"pretrained": explored, "total_timesteps": 160, "checkpoint_freq": 40, "eval_freq": 80, "n_envs": 4, "seed": 2}
    return {**settings, "n_eval_episodes": 2, "distill_steps": 5, "algo_kwargs": TINY}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folders of runs that were never interrupted, and their settings, by command and environment."""
    root = tmp_path_factory.mktemp("reference")

    @lru_cache
    def make(command: str, env: str) -> tuple[Path, dict]:
        out = root / command / env.replace("/", "-")
        settings = pretrain_settings(env) if command == "pretrain" else finetune_settings(env, make("pretrain", env)[0])
        run(settings, out)
        return out, settings

    return make


def check_killed(reference, tmp_path: Path, command: str, env: str, moment: str) -> None:
    expected, settings = reference(command, env)
    target = (PRETRAIN_MOMENTS if command == "pretrain" else FINETUNE_MOMENTS)[moment]
    out = tmp_path / "run"
    assert in_process(lambda: run(settings, out), signal_at(*target)) == -signal.SIGKILL
    assert not RunFolder(out).is_complete()
    with pytest.warns(UserWarning, match="was left by process"):
        run(settings, out, resume=True)
    assert_same_run(expected, out)
    assert not [path.name for path in out.rglob(".*")] and not (out / "run.lock").exists(), "leftovers"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "moment"), IN_BRIEF)
def test_killed_and_resumed(reference, tmp_path, command, moment):
    check_killed(reference, tmp_path, command, MAZE, moment)


@pytest.mark.long
@pytest.mark.parametrize("env", [MAZE, ROBOT, PLAIN])
@pytest.mark.parametrize(
    ("command", "moment"),
    [*(("pretrain", moment) for moment in PRETRAIN_MOMENTS), *(("finetune", moment) for moment in FINETUNE_MOMENTS)],
)
def test_killed_at_any_moment(reference, tmp_path, command, moment, env):
    check_killed(reference, tmp_path, command, env, moment)


class FailsAt(BaseCallback):
    """An error at some step, or a signal."""

    def __init__(self, steps: int, signal_number: int | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.signal_number = signal_number

    def _on_step(self) -> bool:
        if self.num_timesteps == self.steps:
            if self.signal_number is None:
                raise ZeroDivisionError("the environment failed")
            signal.raise_signal(self.signal_number)
        return True


def interrupt_and_resume(settings: dict, tmp_path: Path, steps: int, **options) -> None:
    run(settings, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        run(settings, tmp_path / "run", callback=FailsAt(steps), **options)
    run(settings, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


VARIANTS = {
    "ppo": {"algo": "ppo", "algo_kwargs": {"n_steps": 8, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}}},
    "td3": {"algo": "td3", "reward": "rnd"},
    "gSDE": {"reward": "zero", "algo_kwargs": {**TINY, "use_sde": True}},
    "n-step, ring that wraps": {"algo_kwargs": {**TINY, "buffer_size": 120, "replay_buffer_kwargs": {"n_steps": 3}}},
    "the authors' reward": {"reward": "exdm-paper", "reward_kwargs": {"n_draws": 2, "net_arch": [16]}},
    "actions": {"reward": "edp"},
    "normalized observations": {"env": "UnboundedPendulum-v0", "env_kwargs": {}},
    "normalized, ppo": {
        "env": "UnboundedPendulum-v0",
        "env_kwargs": {},
        "algo": "ppo",
        "algo_kwargs": {"n_steps": 8, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}},
    },
    "one environment after another": {"vec_env": "dummy"},
}


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore:The explorer's Gaussian policy is not saved")
def test_variants_of_pretraining(variant, tmp_path):
    interrupt_and_resume({**pretrain_settings(MAZE), **VARIANTS[variant]}, tmp_path, 148)


FINETUNE_VARIANTS = {
    "idql": {"operator": "idql"},
    "exdm, reused data": {"operator": "exdm", "reuse_data": True, "offline_updates": 10},
    "support of the next actions": {"operator": "exdm", "operator_kwargs": {"critic": "support"}},
    "dql": {"operator": "dql"},
    "gaussian with KL": {"policy": "gaussian", "critic_updates": 5, "kl_steps": 100},
    "n-step": {"algo_kwargs": {**TINY, "replay_buffer_kwargs": {"n_steps": 3}}},
}


@pytest.mark.long
@pytest.mark.parametrize("variant", FINETUNE_VARIANTS)
def test_variants_of_finetuning(variant, reference, tmp_path):
    explored, _ = reference("pretrain", MAZE)
    interrupt_and_resume({**finetune_settings(MAZE, explored), **FINETUNE_VARIANTS[variant]}, tmp_path, 100)


@pytest.mark.long
@pytest.mark.parametrize("algo", ["td3", "ppo"])
@pytest.mark.filterwarnings("ignore:The explorer's Gaussian policy is not saved")
def test_finetuning_of_other_algorithms(algo, tmp_path):
    """With td3, the pre-trained actor of the KL regularization is built when learning begins."""
    small = VARIANTS["ppo"]["algo_kwargs"] if algo == "ppo" else TINY
    explore = {**pretrain_settings(MAZE), "algo": algo, "reward": "rnd", "algo_kwargs": small}
    run(explore, tmp_path / "explored")
    settings = {**finetune_settings(MAZE, tmp_path / "explored"), "policy": "gaussian", "algo_kwargs": small}
    interrupt_and_resume(settings if algo == "ppo" else {**settings, "kl_steps": 100}, tmp_path, 100)


class Secretive(gym.Wrapper):
    """An environment with state in a closure, which cannot be saved."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1").unwrapped)
        n_steps = 0

        def count() -> int:
            nonlocal n_steps
            n_steps += 1
            return n_steps

        self.count = count

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated or self.count() % 37 == 0, info

    def reset(self, **kwargs):
        if kwargs.get("seed") is not None:
            while self.count() % 37:  # a seed leads to the same episodes
                pass
        return self.env.reset(**kwargs)


@pytest.mark.slow
def test_episodes_are_cut_where_the_environment_cannot_be_saved(tmp_path):
    settings = {**pretrain_settings(MAZE), "env": Secretive, "env_kwargs": {}, "reward": "rnd"}
    settings["algo_kwargs"] = {**TINY, "replay_buffer_kwargs": {"n_steps": 3}}
    interrupt_and_resume(settings, tmp_path, 148)
    transitions = RunFolder(tmp_path / "run").transitions()
    last = transitions["truncated"].reshape(-1, 4)
    assert last[[19, 39]].all(), "the last transitions before a checkpoint"
    starts = transitions["observations"].reshape(-1, 4, 3)[[20, 40]]
    assert len(np.unique(starts.round(6), axis=0)) == 2, "another seed at every checkpoint"
    assert not last[59].all(), "there is no cut at the end"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_checkpoint(number, reference, tmp_path):
    expected, settings = reference("pretrain", MAZE)
    error = RunInterrupted if number == signal.SIGINT else RunTerminated
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        run(settings, tmp_path / "run", callback=FailsAt(148, number))
    assert signal.getsignal(number) == before
    message = raised.value.message if isinstance(raised.value, RunTerminated) else str(raised.value)
    assert "after 148 of 240 steps; the state is saved in" in message and "checkpoint 148: go on with" in message
    assert RunFolder(tmp_path / "run").checkpoints() == [80, 148]
    run(settings, tmp_path / "run", resume=True)
    assert_same_run(expected, tmp_path / "run")


FLAGS = {"steps": 240, "checkpoint-freq": 80, "policy-steps": 5, "n-envs": 4, "seed": 1}


def commands(out: Path) -> tuple[list[str], list[str]]:
    """The command of the reference, and the one that goes on with it."""
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    flags += ["--env", MAZE, "--algo-kwargs", json.dumps(TINY), "--env-kwargs", json.dumps(SHORT[MAZE])]
    again = ["pretrain", "--out", str(out), "--quiet", "--device", "cpu"]
    return [*again, *flags], [*again, "--resume"]


@pytest.mark.slow
def test_terminated_command_goes_on_by_its_folder(reference, tmp_path, capfd):
    expected, _ = reference("pretrain", MAZE)
    first, again = commands(tmp_path / "run")
    terminate = signal_at("sb3_exdm.exploration.callbacks:ExplorationCallback._on_step", 37, signal.SIGTERM)
    assert in_process(lambda: main(first), terminate) == 143
    printed = capfd.readouterr().err
    assert "exdm: Terminated after 148 of 240 steps" in printed and "--resume" in printed
    assert in_process(lambda: main(again)) == 0
    assert_same_run(expected, tmp_path / "run")
    capfd.readouterr()
    assert in_process(lambda: main(again)) == 0
    assert "is complete: 240 steps. Nothing was done" in capfd.readouterr().err


@pytest.mark.long
def test_killed_command_goes_on(reference, tmp_path):
    """The commands as a user types them, in interpreters of their own, killed whenever it happens to be."""
    expected, _ = reference("pretrain", MAZE)
    exdm = str(Path(sys.executable).parent / "exdm")
    first, again = commands(tmp_path / "run")
    process = subprocess.Popen([exdm, *first])
    while not list(tmp_path.glob("run/checkpoints/[1-9]*/state.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait(timeout=120) == -signal.SIGKILL
    resumed = subprocess.run([exdm, *again], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0 and "was left by process" in resumed.stderr
    assert_same_run(expected, tmp_path / "run")


@pytest.mark.slow
def test_steps_can_be_added(reference, tmp_path):
    _, settings = reference("pretrain", MAZE)
    run(settings, tmp_path / "run")
    longer = {**settings, "total_timesteps": 320}
    more = run(longer, tmp_path / "run", resume=True)
    folder = RunFolder(tmp_path / "run")
    assert more.summary["timesteps"] == 320 and folder.config["total_timesteps"] == 320
    assert folder.progress()["timesteps"].tolist() == [320]
    whole = run(longer, tmp_path / "whole")
    transitions = folder.transitions()
    assert len(transitions["rewards"]) == 320 and more.model.replay_buffer.size() == 80
    np.testing.assert_array_equal(transitions["actions"], RunFolder(tmp_path / "whole").transitions()["actions"])
    assert more.summary["coverage"] == whole.summary["coverage"]


@pytest.mark.slow
def test_what_resume_refuses(reference, tmp_path):
    expected, settings = reference("pretrain", MAZE)
    for changes, message in (
        ({"seed": 3}, "seed=1, not 3"),
        ({"algo_kwargs": {**TINY, "gamma": 0.5}}, r"algo_kwargs.gamma=0.9\d*, not 0.5"),
        ({"total_timesteps": 200}, "total_timesteps=240, which can be raised, not lowered to 200"),
        ({"env": PLAIN, "env_kwargs": {}}, "env_id='Maze2d-SquareA-v0', not 'Pendulum-v1'"),
    ):
        with pytest.raises(ValueError, match=message):
            run({**settings, **changes}, expected, resume=True)
    for options, message in (
        ({"resume": True, "overwrite": True}, "either resumed or overwritten"),
        ({"resume": True, "out": None}, "name its folder"),
        ({"out": " "}, "output path is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            sb3_exdm.pretrain(**settings, **{**QUIET, "out": tmp_path / "run", **options})
    with pytest.raises(ValueError, match="holds a run of exdm pretrain, not of exdm finetune"):
        sb3_exdm.finetune(MAZE, 100, out=expected, resume=True, **QUIET)
    assert RunFolder(expected).is_complete()
    with pytest.warns(UserWarning, match="is complete: 240 steps"):
        again = run(settings, expected, resume=True)
    assert again.summary["timesteps"] == 240 and again.model.num_timesteps == 240 and again.policy is not None


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(reference, tmp_path):
    expected, settings = reference("pretrain", MAZE)
    with pytest.raises(ZeroDivisionError):
        run(settings, tmp_path / "run", callback=FailsAt(172))
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints() == [80, 160]
    state = folder.path / "checkpoints" / "160" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    run(settings, tmp_path / "run", resume=True)
    assert_same_run(expected, tmp_path / "run")


class Stateful(BaseCallback):
    """A callback of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.generator = np.random.default_rng(0)
        self.draws = 0.0

    def _on_step(self) -> bool:
        self.seen.append(self.num_timesteps)
        self.draws += self.generator.random()
        return True


@pytest.mark.slow
def test_callbacks_of_users_go_on(tmp_path):
    settings = {**pretrain_settings(MAZE), "reward": "zero"}
    whole, resumed = Stateful(), Stateful()
    run(settings, tmp_path / "whole", callback=whole)
    with pytest.raises(ZeroDivisionError):
        run(settings, tmp_path / "run", callback=[Stateful(), FailsAt(172)])
    run(settings, tmp_path / "run", callback=[resumed], resume=True)
    assert resumed.seen == whole.seen and resumed.draws == whole.draws
    unknown = Stateful()
    unknown.stream = iter([1, 2])  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"callback Stateful is not saved; .* stream is not known: it is a builtins\.list_it"):
        run(settings, tmp_path / "unknown", callback=unknown)


@pytest.mark.long
def test_a_process_of_an_environment_that_dies(tmp_path):
    settings = {**pretrain_settings(PLAIN), "vec_env": "subproc", "n_envs": 2, "reward": "zero", "policy_steps": 0}

    class KillsAProcess(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 150:
                os.kill(self.training_env.processes[0].pid, signal.SIGKILL)
            return True

    with pytest.raises(RunInterrupted, match=r"A process of an environment ended after 15\d of 240 steps.*checkpoint 80"):
        run(settings, tmp_path / "run", callback=KillsAProcess())
    run(settings, tmp_path / "run", resume=True)
    run(settings, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_pictures_that_fail_cost_only_themselves(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_exdm.recipes.pretraining.plot_visits", fail)
    with pytest.warns(UserWarning, match="Coverage, visits and reward could not be drawn: OSError"):
        finished = run({**pretrain_settings(MAZE), "reward": "zero"}, tmp_path / "run")
    names = {path.name for path in finished.path.iterdir()}
    assert {"summary.json", "model.safetensors", "policy.safetensors", "transitions.npz", "coverage.png"} <= names


@pytest.mark.slow
def test_one_writer(tmp_path):
    settings = {**pretrain_settings(MAZE), "reward": "zero", "total_timesteps": 80, "policy_steps": 0}

    class RunsAgain(BaseCallback):
        def _on_step(self) -> bool:
            for options in ({"resume": True}, {"overwrite": True}, {}):
                with pytest.raises(OSError, match=f"is being written by process {os.getpid()} on "):
                    run(settings, tmp_path / "run", **options)
            return False

    run(settings, tmp_path / "run", callback=RunsAgain())
    assert not (tmp_path / "run" / "run.lock").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(settings, tmp_path / "run", overwrite=True)


@pytest.mark.slow
def test_what_overwriting_spares(reference, tmp_path):
    explored, _ = reference("pretrain", MAZE)
    settings = finetune_settings(MAZE, explored)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="holds the pre-training to start from"):
            run(settings, explored, **options)
    assert RunFolder(explored).is_complete()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("precious")
    for config in (None, '{"model_type": "bert"}'):
        if config is not None:
            (other / "config.json").write_text(config)
        with pytest.raises(FileExistsError, match="is not the folder of a run"):
            run(pretrain_settings(MAZE), other, overwrite=True)
        assert (other / "model.safetensors").read_text() == "precious"
