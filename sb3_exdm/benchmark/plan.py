"""The runs that benchmarks of fine-tuning are made of: pre-training, and adapting to a task."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gymnasium import spaces

from sb3_exdm.benchmark.execute import is_complete, run_missing
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.recipes import finetune, pretrain
from sb3_exdm.runs.hyperparams import finetune_settings, make_training_env

METHODS = (*OPERATORS, "gaussian", "scratch")
"""The operators; the Gaussian that explored, improved by the algorithm that trained it; the same without pre-training."""
REUSE = {"both": (False, True), "no": (False,), "yes": (True,)}
"""Values of ``reuse_data=`` and which runs they ask for."""
N_ENVS = 8
EVAL_FREQ = 2500
OFFLINE_UPDATES = 5000


@dataclass(frozen=True)
class Exploration:
    """
    The pre-training that runs begin with.

    :param env_id: id of the environment
    :param seed: seed of everything
    :param steps: environment steps
    :param folder: run folder
    :param reward: name of the intrinsic reward; None leaves it to whoever made the run, and is the default reward if it is
        missing
    """

    env_id: str
    seed: int
    steps: int
    folder: Path
    reward: str | None = None

    @property
    def task(self) -> str:
        """Short name of the environment."""
        return short_name(self.env_id)

    @property
    def requires(self) -> None:
        """Nothing."""

    def differences(self, config: dict[str, Any]) -> list[str]:
        """Settings in which another run differs from this one."""
        expected = {"command": "pretrain", "env_id": self.env_id, "total_timesteps": self.steps, "seed": self.seed}
        if self.reward is not None:
            expected["reward"] = self.reward
        return [key for key, value in expected.items() if config.get(key) != value]

    def execute(self) -> None:
        """Explore."""
        pretrain(
            self.env_id,
            self.steps,
            reward=self.reward or "score",
            seed=self.seed,
            n_envs=N_ENVS,
            out=self.folder,
            overwrite=True,
            device="cpu",
            checkpoint_freq=0,
            progress_bar=False,
        )


@dataclass(frozen=True)
class Adaptation:
    """
    A run of fine-tuning.

    :param env_id: id of the environment
    :param method: one of :data:`METHODS`
    :param seed: seed of everything
    :param steps: environment steps
    :param pretrained: run folder of the pre-training, None from scratch
    :param folder: run folder
    :param reuse: begin with the transitions of the pre-training
    :param env_kwargs: arguments of the environment
    :param n_eval_episodes: episodes of an evaluation, None for as many as usual
    :param distill_steps: gradient steps that distill what was fine-tuned
    """

    env_id: str
    method: str
    seed: int
    steps: int
    pretrained: Path | None
    folder: Path
    reuse: bool = False
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    n_eval_episodes: int | None = None
    distill_steps: int = 4000

    @property
    def task(self) -> str:
        """Short name of the environment."""
        return short_name(self.env_id)

    @property
    def requires(self) -> Path | None:
        """The pre-training."""
        return self.pretrained

    @property
    def _settings(self) -> dict[str, Any]:
        """What it shares with the arguments of the recipe."""
        is_operator = self.method in OPERATORS
        return {
            "env_id": self.env_id,
            "total_timesteps": self.steps,
            "policy": "diffusion" if is_operator else "gaussian",
            "operator": self.method if is_operator else None,
            "seed": self.seed,
            "n_envs": N_ENVS,
            "reuse_data": self.reuse,
            "env_kwargs": self.env_kwargs,
            "offline_updates": OFFLINE_UPDATES,
            "n_eval_episodes": self.n_eval_episodes,
        }

    def differences(self, config: dict[str, Any]) -> list[str]:
        """Settings in which another run differs from this one."""
        settings = finetune_settings(_observation_space(self.env_id), N_ENVS)
        shared = {key: value for key, value in settings.items() if key != "policy_kwargs"}
        known = config.get("algo_kwargs", {})
        expected = json.loads(json.dumps(self._settings))
        if self.n_eval_episodes is None:
            del expected["n_eval_episodes"]
        return [
            *(key for key, value in expected.items() if config.get(key) != value),
            *(key for key, value in shared.items() if known.get(key) != value),
            *(["pretrained"] if (config.get("pretrained") is None) != (self.pretrained is None) else []),
        ]

    def execute(self) -> None:
        """Adapt."""
        settings = {key: value for key, value in self._settings.items() if value is not None}
        finetune(
            **settings,
            pretrained=self.pretrained,
            out=self.folder,
            overwrite=True,
            device="cpu",
            distill_steps=self.distill_steps,
            eval_freq=EVAL_FREQ,
            progress_bar=False,
        )


def check_reuse(reuse_data: str) -> None:
    """:raises ValueError: if this is no key of :data:`REUSE`"""
    if reuse_data not in REUSE:
        raise ValueError(f"reuse_data must be one of {', '.join(REUSE)}, got {reuse_data!r}.")


def check_any(adaptations: Sequence[Adaptation]) -> None:
    """:raises ValueError: if there is no run, which is so where learning from scratch shall use data again"""
    if not adaptations:
        raise ValueError("From scratch there is nothing to use again; name other methods, or reuse_data='no'.")


def in_order(
    explorations: Sequence[Exploration], adaptations: Sequence[Adaptation], seeds: Sequence[int]
) -> list[Exploration | Adaptation]:
    """Seed by seed, its pre-training first."""
    runs: list[Exploration | Adaptation] = [*explorations, *adaptations]
    return [run for seed in seeds for run in runs if run.seed == seed]


def run_and_collect(
    out: Path,
    explorations: Sequence[Exploration],
    adaptations: Sequence[Adaptation],
    seeds: Sequence[int],
    jobs: int,
    report_only: bool,
) -> list[Adaptation]:
    """
    Run what is missing, unless only a report is wanted.

    :return: the complete runs of fine-tuning
    :raises ValueError: if there are none
    """
    if not report_only:
        run_missing(in_order(explorations, adaptations, seeds), out, jobs)
    complete = [run for run in adaptations if is_complete(run)]
    if not complete:
        raise ValueError(f"There is nothing to report: {out} holds no complete run of this sweep.")
    return complete


def short_name(env_id: str) -> str:
    """``"SquareC"`` of ``"Maze2d-SquareC-v0"``, ``"walker-walk"`` of ``"URLB/walker-walk-v0"``."""
    return re.sub(r"-v\d+$", "", env_id.split("/")[-1]).removeprefix("Maze2d-")


@cache
def _observation_space(env_id: str) -> spaces.Space:
    env = make_training_env(env_id, 1, 0)
    env.close()
    return env.observation_space
