"""Hostile command lines: each ends well, or with one sentence and exit code 2, and then leaves no file behind."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_exdm.cli import main
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.rewards.registry import REWARDS

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
    "exdm_paper": "n_draws net_arch residual dropout learning_rate",
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


def nested(*path: str) -> Iterator[str]:
    """JSON objects with every hostile value at the end of a path of keys."""
    for value in VALUES:
        for key in reversed(path):
            value = {key: value}
        yield json.dumps(value)


def command_lines() -> Iterator[list[str]]:
    """All command lines, each with one hostile value."""
    pretrain = ["pretrain", "--env", "Maze2d-SquareA-v0", "--steps", "48", "--policy-steps", "2", "--quiet", "--device", "cpu"]
    small = ["--algo-kwargs", json.dumps(SMALL)]
    finetune = ["finetune", "--env", "Maze2d-SquareA-v0", "--steps", "48", "--n-eval-episodes", "1", "--distill-steps", "2"]
    finetune += ["--critic-updates", "2", "--eval-freq", "1000", "--quiet", "--device", "cpu"]
    training = "--steps --seed --n-envs --action-noise --threads".split()
    names = ["--vec-env", "--profile", "--algo", "--device", "--env"]
    for flag in [*training, "--coverage-dims", "--bin-width", "--policy-steps", "--checkpoint-freq", "--seeds"]:
        yield from ([*pretrain, *small, flag, value] for value in NUMBERS)
    yield from ([*pretrain, *small, "--threads", value] for value in ("100000", "2"))
    yield from ([*pretrain, *small, "--n-envs", value] for value in ("100000000", "1000000"))
    yield from ([*pretrain, *small, "--n-envs", "50000", "--vec-env", vec_env] for vec_env in ("dummy", "subproc"))
    yield from ([*pretrain, *small, "--seeds", value] for value in ("0-99999999999", "5-3", "1-1"))
    yield from ([*pretrain, *small, "--device", value] for value in ("cuda", "cuda:7", "meta", "mps", "cpu:3", "xla"))
    for flag in [*names, "--reward"]:
        yield from ([*pretrain, *small, flag, value] for value in NAMES)
    yield from ([*pretrain, *small, "--out", value] for value in PATHS)
    for flag in ("--algo-kwargs", "--reward-kwargs", "--env-kwargs"):
        yield from ([*pretrain, flag, value] for value in JSON)
    more = ["--eval-freq", "--offline-updates", "--critic-updates", "--kl-steps", "--distill-steps", "--n-eval-episodes"]
    for flag in [*training, *more, "--correlation"]:
        yield from ([*finetune, *small, flag, value] for value in NUMBERS)
    for flag in [*names, "--policy", "--start", "--warm-up", "--operator"]:
        yield from ([*finetune, *small, flag, value] for value in NAMES)
    for flag in ("--out", "--pretrained"):
        yield from ([*finetune, *small, flag, value] for value in PATHS)
    for flag in ("--algo-kwargs", "--operator-kwargs", "--env-kwargs"):
        yield from ([*finetune, flag, value] for value in JSON)
    for algo, keys in ALGO_KEYS.items():
        for key in keys.split():
            for value in nested(key):
                settings = json.dumps({**SMALL, **json.loads(value)} if algo != "ppo" else {"n_steps": 8, **json.loads(value)})
                yield [*pretrain, "--algo", algo, "--algo-kwargs", settings]
                if algo == "sac":
                    yield [*finetune, "--algo-kwargs", settings]
    for key in POLICY_KEYS.split():
        yield from ([*pretrain, "--algo-kwargs", value] for value in nested("policy_kwargs", key))
    for key in DIFFUSION_KEYS.split():
        yield from ([*finetune, "--algo-kwargs", value] for value in nested("policy_kwargs", key))
    for key in BUFFER_KEYS.split():
        yield from ([*pretrain, "--algo-kwargs", value] for value in nested("replay_buffer_kwargs", key))
    for key in ENV_KEYS.split():
        yield from ([*pretrain, *small, "--env-kwargs", value] for value in nested(key))
    for reward, keys in REWARD_KEYS.items():
        if reward in REWARDS:
            for key in keys.split():
                yield from ([*pretrain, *small, "--reward", reward, "--reward-kwargs", value] for value in nested(key))
    for operator, keys in OPERATOR_KEYS.items():
        if operator in OPERATORS:
            for key in keys.split():
                yield from ([*finetune, *small, "--operator", operator, "--operator-kwargs", value] for value in nested(key))
    pendulum = [
        "pretrain",
        "--env",
        "Pendulum-v1",
        "--steps",
        "48",
        "--policy-steps",
        "2",
        "--quiet",
        "--device",
        "cpu",
        *small,
    ]
    for flag in ("--bin-width", "--coverage-dims"):
        yield from ([*pendulum, flag, value] for value in NUMBERS)
    for key in ("g", "render_mode", "max_episode_steps", "x", "id"):
        yield from ([*pendulum, "--env-kwargs", value] for value in nested(key))
    for flag in ("--episodes", "--seed"):
        yield from (["evaluate", "explored", flag, value] for value in NUMBERS)
    for flag in ("--env", "--device"):
        yield from (["evaluate", "explored", "--episodes", "1", flag, value] for value in NAMES)
    yield from (["evaluate", "explored", "--episodes", "1", "--env-kwargs", value] for value in JSON)
    yield from (["evaluate", "explored", "--episodes", "1", "--video", value] for value in PATHS)
    yield from (["evaluate", value, "--episodes", "1"] for value in PATHS)
    clone = ["clone", "explored", "--out", "p.safetensors", "--quiet", "--steps", "2"]
    for flag in ("--steps", "--batch-size", "--seed"):
        yield from ([*clone, flag, value] for value in NUMBERS)
    yield from ([*clone[:3], value, *clone[4:]] for value in PATHS)
    yield from (["clone", value, *clone[2:]] for value in PATHS)
    yield from ([*clone, "--device", value] for value in NAMES)
    for key in "net_arch n_sampling_steps grid frequencies n_frequencies learning_rate seed".split():
        yield from ([*clone, "--policy-kwargs", value] for value in nested(key))
    yield from (["plot", "explored", "--out", value] for value in PATHS)
    yield from (["plot", value] for value in PATHS)
    for flag in ("--metric", "--x"):
        yield from (["plot", "explored", flag, value] for value in NAMES)
    yield from (["report", value] for value in [*PATHS, "explored"])
    yield from (["report", "adapted", "--out", value] for value in PATHS)
    yield from (["report", "adapted", "--score", value] for value in NAMES)
    yield from (["report", "adapted", "--score", "success_rate", "--reps", value] for value in NUMBERS)
    for benchmark in ("coverage", "finetune", "control"):
        sweep = ["benchmark", benchmark, "--report-only"]
        for flag in ("--jobs", "--steps", "--seeds"):
            yield from ([*sweep, flag, value] for value in NUMBERS)
        yield from ([*sweep, "--out", value] for value in PATHS)
        for flag in ("--rewards", "--methods", "--mazes", "--domain", "--algo", "--reuse-data"):
            yield from ([*sweep, flag, value] for value in NAMES)
    for command in ("", "x", "--", "-", "\0", "pretrain", "--help --version", "benchmark x"):
        yield command.split(" ")


class TooLong(BaseException):
    """A command line that neither ended nor was refused in time."""


class StopEarly(BaseCallback):
    """End the training after a few steps: the arguments were accepted."""

    def _on_step(self) -> bool:
        return self.n_calls < 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with a small pre-training, a fine-tuning and a file."""
    folder = tmp_path_factory.mktemp("fuzz")
    small = ["--algo-kwargs", json.dumps(SMALL), "--quiet", "--device", "cpu"]
    pretrain = ["pretrain", "--env", "Maze2d-SquareA-v0", "--steps", "48", "--policy-steps", "2"]
    main([*pretrain, "--out", str(folder / "explored"), *small])
    finetune = ["finetune", "--env", "Maze2d-SquareA-v0", "--steps", "16", "--n-eval-episodes", "1", "--distill-steps", "2"]
    main([*finetune, "--out", str(folder / "adapted"), *small])
    (folder / "a_file").touch()
    return folder


@pytest.fixture
def short(monkeypatch):
    """Trainings stop early, and every command has some seconds."""
    learn = BaseAlgorithm.learn
    for algorithm in list(BaseAlgorithm.__subclasses__()):
        pass


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def outcome(argv: list[str], capsys: Any) -> str | None:
    """Fault of a command line, None if it ended as it should."""
    before = files_of(Path())

    def too_long(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    fault = None
    try:
        main(argv)
    except SystemExit as stop:
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if not line.startswith("exdm: warning: ")]
        if stop.code == 2 and (len(lines) != 1 or not lines[0].startswith("exdm: ") or len(lines[0]) > 2000):
            fault = f"says {said[:500]!r}"
        elif stop.code not in (None, 0, 2):
            fault = f"exit code {stop.code}"
        elif stop.code == 2 and files_of(Path()) != before:
            fault = f"leaves {sorted(files_of(Path()) - before)}: {said[:200]!r}"
        print("SAID", said[:300], file=sys.__stdout__) if "SHOW" in __import__("os").environ else None
    except TooLong:
        fault = "takes too long"
    except BaseException as error:
        fault = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    capsys.readouterr()
    for name in files_of(Path()) - before:
        path = Path(name)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return fault
