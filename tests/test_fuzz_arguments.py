"""Hostile command lines: each ends well, or with one sentence and exit code 2, and then leaves no file behind."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import in_seconds
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_exdm.cli import main

NUMBERS = ["-1", "0", "1.5", "nan", "inf", "-inf", "1e400", str(10**15), str(10**30), "", "x", "0x10", "9" * 5000]
"""Values of flags that take a number."""
PATHS = ["", "\0", "a_file", "a_file/inside", "/dev/null", "/dev/null/inside", "/proc/inside", "a" * 300, "new/" + "a" * 300]
"""Values of flags that take a path; ``a_file`` exists."""
NAMES = ["", "x", "nowhere:x", ":", "a/b", "../..", "\0", "None", "é" * 1000]
"""Values of flags that take a name."""
VALUES = [None, True, -1, 0, 1.5, 10**15, 10**30, float("nan"), float("inf"), "", "x", [], [0], [-1], [10**9], {}, {"x": 1}]
"""Values in JSON flags."""
JSON = ["", "{", "[]", "null", "1", '{"x": 1}', '{"x": NaN}', '{"": {}}', '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"]
"""Values of flags that take a JSON object."""

SMALL = {"learning_starts": 8, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
ALGO_KEYS = {
    "sac": "learning_rate buffer_size learning_starts batch_size tau gamma train_freq gradient_steps replay_buffer_kwargs "
    "optimize_memory_usage n_steps ent_coef target_update_interval target_entropy use_sde sde_sample_freq use_sde_at_warmup "
    "stats_window_size tensorboard_log policy_kwargs policy env seed device verbose",
    "td3": "learning_rate gamma policy_delay target_policy_noise target_noise_clip n_steps gradient_steps train_freq",
    "ddpg": "learning_rate gamma tau gradient_steps batch_size",
    "ppo": "learning_rate n_steps batch_size n_epochs gamma gae_lambda clip_range clip_range_vf normalize_advantage ent_coef "
    "vf_coef max_grad_norm use_sde rollout_buffer_kwargs target_kl policy_kwargs",
}
POLICY_KEYS = (
    "net_arch activation_fn log_std_init use_expln clip_mean features_extractor_class features_extractor_kwargs "
    "normalize_images optimizer_class optimizer_kwargs n_critics share_features_extractor"
)
DIFFUSION_KEYS = "net_arch diffusion_arch n_critics n_sampling_steps grid frequencies n_frequencies pretrained start use_sde"
ENV_KEYS = "layout reward_type goal_cell goal_radius terminate_on_success max_episode_steps render_mode num_envs n_envs seed"
REWARD_KEYS = {
    "score": "kind n_levels n_noises net_arch n_frequencies learning_rate ema_rate batch_size seed",
    "rnd": "net_arch embedding_dim clip_obs n_frequencies learning_rate",
    "apt": "n_references n_neighbors",
    "count": "bin_width bonus forgetting n_slots",
    "exdm-paper": "n_draws net_arch residual dropout learning_rate",
}
OPERATOR_KEYS = {
    "select": "ent_coef target_entropy tau learning_rate",
    "exdm": "beta n_cached_actions expectile tau",
    "idql": "expectile",
    "dql": "eta",
    "qsm": "scale",
    "dipo": "n_gradient_steps step_size",
    "weighted": "beta n_cached_actions",
}
BUFFER_KEYS = "intrinsic_coef extrinsic_coef train_freq gradient_steps batch_size learning_starts reward_transform n_steps"


def nested(*path: str) -> list[str]:
    """JSON objects with every hostile value at the end of a path of keys."""
    found = []
    for value in VALUES:
        for key in reversed(path):
            value = {key: value}
        found.append(json.dumps(value))
    return found


def lines(command: list[str], flags: str, values: list[str]) -> Iterator[list[str]]:
    """A command with one of the flags and one of the values."""
    yield from ([*command, flag, value] for flag in flags.split() for value in values)


TINY = ["--algo-kwargs", json.dumps(SMALL)]
QUIETLY = ["--quiet", "--device", "cpu"]
PRETRAIN = ["pretrain", "--env", "Maze2d-SquareA-v0", "--steps", "48", "--policy-steps", "2", *QUIETLY]
PENDULUM = ["pretrain", "--env", "Pendulum-v1", *PRETRAIN[3:], *TINY]
FINETUNE = ["finetune", "--env", "Maze2d-SquareA-v0", "--steps", "48", "--n-eval-episodes", "1", "--distill-steps", "2"]
FINETUNE += ["--critic-updates", "2", "--eval-freq", "1000", *QUIETLY]
CLONE = ["clone", "explored", "--out", "p.safetensors", "--quiet", "--steps", "2"]
EVALUATE = ["evaluate", "explored", "--episodes", "1"]
NUMERIC = "--steps --seed --n-envs --action-noise --threads"
NAMED = "--vec-env --profile --algo --device --env"


def pretrain_lines() -> Iterator[list[str]]:
    command = [*PRETRAIN, *TINY]
    yield from lines(command, f"{NUMERIC} --coverage-dims --bin-width --policy-steps --checkpoint-freq --seeds", NUMBERS)
    yield from lines(command, "--threads", ["100000"])
    yield from lines(command, "--n-envs", ["100000000", "1000000"])
    yield [*command, "--n-envs", "10000", "--vec-env", "subproc"]
    yield from lines(command, "--seeds", ["0-99999999999", "5-3"])
    yield from lines(command, "--device", ["cuda:99", "meta", "xla"])
    yield from lines(command, f"{NAMED} --reward", NAMES)
    yield from lines(command, "--out", PATHS)
    yield from lines(PRETRAIN, "--algo-kwargs --reward-kwargs --env-kwargs", JSON)
    yield from lines(PENDULUM, "--bin-width --coverage-dims", NUMBERS)


def finetune_lines() -> Iterator[list[str]]:
    command = [*FINETUNE, *TINY]
    updates = "--eval-freq --offline-updates --critic-updates --kl-steps --distill-steps --n-eval-episodes --correlation"
    yield from lines(command, f"{NUMERIC} {updates}", NUMBERS)
    yield from lines(command, f"{NAMED} --policy --start --warm-up --operator", NAMES)
    yield from lines(command, "--out --pretrained", PATHS)
    yield from lines(FINETUNE, "--algo-kwargs --operator-kwargs --env-kwargs", JSON)


def settings_lines() -> Iterator[list[str]]:
    """Hostile values in the keyword arguments of algorithms, policies, environments, rewards and operators."""
    for algo, keys in ALGO_KEYS.items():
        small: dict[str, Any] = SMALL if algo != "ppo" else {"n_steps": 8}
        for key in keys.split():
            settings = [json.dumps({**small, **json.loads(value)}) for value in nested(key)]
            yield from lines([*PRETRAIN, "--algo", algo], "--algo-kwargs", settings)
            yield from lines(FINETUNE, "--algo-kwargs", settings if algo == "sac" else [])
    for command, group, keys in (
        (PRETRAIN, "policy_kwargs", POLICY_KEYS),
        (FINETUNE, "policy_kwargs", DIFFUSION_KEYS),
        (PRETRAIN, "replay_buffer_kwargs", BUFFER_KEYS),
        (FINETUNE, "replay_buffer_kwargs", "n_steps gamma success_fraction success_horizon offline_fraction seed device"),
    ):
        for key in keys.split():
            yield from lines(command, "--algo-kwargs", nested(group, key))
    for command, flag, keys in (
        ([*PRETRAIN, *TINY], "--env-kwargs", ENV_KEYS),
        (PENDULUM, "--env-kwargs", "g render_mode max_episode_steps x id"),
        (CLONE, "--policy-kwargs", "net_arch n_sampling_steps grid frequencies n_frequencies learning_rate seed"),
        *(([*PRETRAIN, *TINY, "--reward", name], "--reward-kwargs", keys) for name, keys in REWARD_KEYS.items()),
        *(([*FINETUNE, *TINY, "--operator", name], "--operator-kwargs", keys) for name, keys in OPERATOR_KEYS.items()),
    ):
        for key in keys.split():
            yield from lines(command, flag, nested(key))


def other_lines() -> Iterator[list[str]]:
    yield from lines(EVALUATE, "--episodes --seed", NUMBERS)
    yield from lines(EVALUATE, "--env --device", NAMES)
    yield from lines(EVALUATE, "--env-kwargs", JSON)
    yield from lines(EVALUATE, "--video", PATHS)
    yield from lines(CLONE, "--steps --batch-size --seed", NUMBERS)
    yield from lines(CLONE, "--out", PATHS)
    yield from lines(CLONE, "--device", NAMES)
    for path in PATHS:
        yield from (["evaluate", path], ["clone", path, *CLONE[2:]], ["plot", path], ["report", path])
    yield from lines(["plot", "explored"], "--out", PATHS)
    yield from lines(["plot", "explored"], "--metric --x", NAMES)
    yield from lines(["report", "adapted", "--score", "success_rate"], "--out", PATHS)
    yield from lines(["report", "adapted"], "--score", NAMES)
    yield from lines(["report", "adapted", "--score", "success_rate"], "--reps", NUMBERS)
    for name in ("coverage", "finetune", "control"):
        yield from lines(["benchmark", name, "--report-only"], "--jobs --steps --seeds", NUMBERS)
        yield from lines(["benchmark", name, "--report-only"], "--out", PATHS)
        yield from lines(["benchmark", name], "--rewards --methods --mazes --domain --algo --reuse-data --report-only", NAMES)
    for command in ("", "x", "--", "-", "\0", "pretrain", "--help --version", "benchmark x"):
        yield command.split(" ")


def command_lines() -> list[list[str]]:
    """All command lines, each with one hostile value."""
    return [*pretrain_lines(), *finetune_lines(), *settings_lines(), *other_lines()]


class StopEarly(BaseCallback):
    """End the training after a few steps: the arguments were accepted."""

    def _on_step(self) -> bool:
        return self.n_calls < 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with a small pre-training, a fine-tuning and a file."""
    folder = tmp_path_factory.mktemp("fuzz")
    main([*PRETRAIN, *TINY, "--out", str(folder / "explored")])
    main([*FINETUNE[:4], "16", *FINETUNE[5:], *TINY, "--out", str(folder / "adapted")])
    (folder / "a_file").touch()
    return folder


@pytest.fixture
def fuzz(runs, monkeypatch, capsys):
    """Function that lists the faults of command lines; trainings stop early."""
    monkeypatch.chdir(runs)
    for algorithm in (OffPolicyAlgorithm, OnPolicyAlgorithm):

        def learn(self, total_timesteps, callback=None, *args, _learn=algorithm.learn, **kwargs):
            callbacks = callback if isinstance(callback, list) else [callback]
            return _learn(self, total_timesteps, [*callbacks, StopEarly()], *args, **kwargs)

        monkeypatch.setattr(algorithm, "learn", learn)

    def faults(argvs: list[list[str]]) -> list[str]:
        found = []
        for argv in argvs:
            if fault := outcome(argv, capsys):
                found.append(f"{fault} <- exdm {' '.join(word[:100] for word in argv)}")
        return found

    return faults


def files() -> set[Path]:
    return set(Path().rglob("*"))


def outcome(argv: list[str], capsys: Any) -> str | None:
    """Fault of a command line, None if it ended as it should."""
    before, fault = files(), None
    try:
        with in_seconds(120), warnings.catch_warnings():
            main(argv)
    except SystemExit as stop:
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("exdm: warning: ")]
        if stop.code == 2 and (len(said) != 1 or not said[0].startswith("exdm: ") or len(said[0]) > 2000):
            fault = f"says {said}"
        elif stop.code not in (None, 0, 2):
            fault = f"exit code {stop.code}"
        elif stop.code == 2 and files() != before:
            fault = f"leaves {sorted(map(str, files() - before))}, says {said}"
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    capsys.readouterr()
    for path in files() - before:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return fault


@pytest.mark.slow
def test_some_hostile_command_lines(fuzz):
    """A fixed sample of those below."""
    everything = command_lines()
    drawn = np.random.default_rng(0).choice(len(everything), 25, replace=False)
    assert fuzz([everything[i] for i in drawn]) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(8))
def test_all_hostile_command_lines(fuzz, part):
    assert fuzz(command_lines()[part::8]) == []
