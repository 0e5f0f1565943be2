"""
The settings of runs, a dataclass for each command.

A field is at once a keyword argument of the recipe, a flag of the command line, a line of ``config.json`` and the key of a
sweep. Its docstring is the help. To add a setting, add a field here and use it where it matters.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from sb3_exdm.common.serialization import parse_json
from sb3_exdm.common.validation import (
    BatchSize,
    Between,
    Seed,
    Updates,
    check_choice,
    check_value,
    did_you_mean,
    metadata,
)
from sb3_exdm.finetuning.callback import WARM_UPS
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.policies.diffusion_policy import STARTS
from sb3_exdm.rewards.base import REWARD_TRANSFORMS
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.envs import VEC_ENVS, import_user_module
from sb3_exdm.runs.hyperparams import ALGORITHMS, PROFILES, to_plain

SelfConfig = TypeVar("SelfConfig", bound="Config")


@dataclass(frozen=True, eq=False)  # compared by identity, as a registry has no hash
class OneOf:
    """
    Constraint on names.

    :param known: names, or a registry of them
    """

    known: Collection[str]

    def check(self, name: str, value: Any) -> None:
        """
        Refuse unknown names.

        :param name: how the error message calls the kind of name
        :param value: name; None in an optional setting
        :raises ValueError: with the nearest known name
        """
        if value is not None:
            check_choice(name, value, self.known)


class Registered(OneOf):
    """Constraint on names in a registry, to which the program of a user may add more."""


def _parse_json(words: list[str]) -> dict[str, Any]:
    try:
        value = parse_json(words[0])
    except ValueError as error:
        raise ValueError(f"expected JSON such as '{{\"key\": 1}}': {error}") from None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object such as '{\"key\": 1}'")
    return value


_JSON: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=_parse_json,
    is_instance=lambda value: value is None or isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
PlainDict = Annotated[dict[str, Any], _JSON]
"""Keyword arguments as plain data; a JSON object on the command line."""


Count = Annotated[int, Between(0, 10**12), arg(metavar="N")]
Positive = Annotated[int, Between(1, 10**12), arg(metavar="N")]
NUpdates = Annotated[Updates, arg(metavar="N")]
SeedNumber = Annotated[Seed, arg(metavar="N")]
Episodes = Annotated[int, Between(1, 10**6)]


def _shown(default: str, metavar: str = "N") -> Any:
    """Help of a field whose default is None."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _names(known: Collection[str]) -> str:
    return f"{{{','.join(known)}}}"


@dataclass(kw_only=True)
class Config:
    """Base class of configurations."""

    @classmethod
    def make(cls: type[SelfConfig], **settings: Any) -> SelfConfig:
        """
        Build and check a configuration.

        :param settings: values of fields; ``"module:NAME"`` imports the module that registers a name
        :raises ValueError: for an unknown field, with the nearest one, or a value of the wrong type or out of range
        """
        known = [entry.name for entry in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"There is no setting {name!r}{did_you_mean(name, known)}; choose among {', '.join(known)}.")
        for name, hint in get_type_hints(cls, include_extras=True).items():
            value = settings.get(name)
            if isinstance(value, str) and ":" in value and any(isinstance(entry, OneOf) for entry in metadata(hint)):
                module, _, settings[name] = value.rpartition(":")
                import_user_module(module)
        config = cls(**to_plain(settings))
        config.validate()
        config.to_dict()  # refuses values that JSON cannot hold
        return config

    def validate(self) -> None:
        """
        Check types and ranges of all fields.

        :raises ValueError: naming the first field that is wrong
        """
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            check_value(name, getattr(self, name), hint)

    @classmethod
    def check_content(cls, content: Mapping[str, Any]) -> None:
        """
        Check types and ranges in a stored configuration. A name may be one that only the program that wrote it has registered.

        :param content: contents of ``config.json``; keys that are not fields are not checked
        :raises ValueError: naming the first field that is wrong
        """
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if name in content:
                check_value(name, content[name], hint, ignore=Registered)

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to plain data, as ``config.json`` holds it.

        :raises ValueError: if a value cannot be written as JSON
        """
        content = asdict(self)
        for name, value in content.items():
            content[name] = str(value) if isinstance(value, Path) else value
            try:
                content[name] = json.loads(json.dumps(content[name]))
            except TypeError as error:
                raise ValueError(f"{name} must be plain data that JSON can hold: {error}.") from None
        return content

    @classmethod
    def from_dict(cls: type[SelfConfig], content: Mapping[str, Any]) -> SelfConfig:
        """
        Rebuild a configuration from :meth:`to_dict`; keys that are not fields are left out.

        :param content: plain data
        :raises ValueError: for a value of the wrong type or out of range
        """
        known = {entry.name for entry in fields(cls)}
        config = cls(**{key: value for key, value in content.items() if key in known})
        config.validate()
        return config

    def to_kwargs(self) -> dict[str, Any]:
        """Fields as keyword arguments."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def with_changes(self: SelfConfig, **changes: Any) -> SelfConfig:
        """
        Copy with other values.

        :param changes: values of fields
        """
        return replace(self, **changes)

    def differences(self, content: Mapping[str, Any]) -> list[str]:
        """
        Compare with what another run was configured as.

        :param content: contents of its ``config.json``; a setting that an earlier version did not have counts as its default
        :return: fields that differ
        """
        defaults = {entry.name: entry.default for entry in fields(self)}
        return [name for name, value in self.to_dict().items() if content.get(name, defaults[name]) != value]


MAX_SEEDS = 1000
"""Most seeds of a sweep."""


def parse_seeds(words: list[str]) -> tuple[int, ...]:
    """
    Parse seeds from the command line.

    :param words: a number of seeds, such as ``["5"]`` for 0 to 4, or a range such as ``["10-14"]``
    :raises ValueError: for anything else
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", words[0])
    if match is None:
        raise ValueError("expected a number of seeds, such as 5 for 0 to 4, or a range such as 10-14")
    first, last = match.groups()
    seeds = range(int(first)) if last is None else range(int(first), int(last) + 1)
    if seeds.stop - seeds.start > MAX_SEEDS:
        raise ValueError(f"expected at most {MAX_SEEDS} seeds")
    return tuple(seeds)


Seeds = Annotated[
    tuple[Seed, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|A-B",
        instance_from_str=parse_seeds,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [f"{value[0]}-{value[-1]}" if value else "0"],
    ),
]
"""Seeds; on the command line their number, or the first and the last."""


@dataclass(kw_only=True)
class TrainingConfig(Config):
    """Settings that pre-training and fine-tuning share."""

    command: ClassVar[str]
    """Command of exdm that they are settings of."""

    env_id: Annotated[str | None, arg(name="env"), _shown("that of the pre-training", "ID")] = None
    """Id of a Gymnasium environment, e.g. Maze2d-SquareLarge-v0 or Pendulum-v1. "module:ID" imports the module first."""
    total_timesteps: Annotated[Positive, arg(name="steps")] = 20_000
    """Environment steps, over all environments together."""
    seed: SeedNumber = 0
    """Seed of everything."""
    n_envs: Annotated[int, Between(1, 10_000), arg(metavar="N")] = 8
    """Number of environments stepped together."""
    vec_env: Annotated[str, OneOf(VEC_ENVS), arg(metavar=_names(VEC_ENVS))] = "auto"
    """Stepping of environments: the fastest way in one process, one after another (dummy), or in a process each (subproc)."""
    env_kwargs: PlainDict = field(default_factory=dict)
    """Arguments of the environment, e.g. '{"goal_cell": "farthest"}'."""
    profile: Annotated[str | None, OneOf(PROFILES), _shown("chosen from the observation space", _names(PROFILES))] = None
    """Named set of default hyper-parameters."""
    algo_kwargs: PlainDict = field(default_factory=dict)
    """Changes to the hyper-parameters of the algorithm, merged deeply, e.g. '{"learning_rate": 0.001}'."""
    action_noise: Annotated[float | None, Between(0.0, 10.0), _shown("0.5 to explore, 0.1 to fine-tune", "X")] = None
    """Standard deviation of the Gaussian noise that td3 and ddpg add to actions in [-1, 1]."""
    checkpoint_freq: Annotated[Count | None, _shown("10000, or 2000 in profile pixels")] = None
    """Steps between two checkpoints, from which the run can be resumed; 0 for none."""
    keep_checkpoints: Count = 2
    """Checkpoints to keep, the latest ones; 0 for all."""


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of sb3_exdm.pretrain."""

    command = "pretrain"

    env_id: Annotated[str, arg(name="env", metavar="ID")] = field()
    """Id of a Gymnasium environment, e.g. Maze2d-SquareLarge-v0 or Pendulum-v1. "module:ID" imports the module first."""
    total_timesteps: Annotated[Positive, arg(name="steps")] = 100_000
    """Environment steps, over all environments together."""
    algo: Annotated[str, OneOf(ALGORITHMS), arg(metavar=_names(ALGORITHMS))] = "sac"
    """Reinforcement learning algorithm; ppo where actions are not continuous."""
    reward: Annotated[str, Registered(REWARDS), arg(metavar=_names(REWARDS))] = "score"
    """Intrinsic reward: ExDM's denoising error (score), EDP's (edp), or one to compare with. "module:NAME" imports the module
    that registers it first."""
    reward_kwargs: PlainDict = field(default_factory=dict)
    """Arguments of the reward, e.g. '{"n_levels": 2}'."""
    reward_transform: Annotated[
        str | None,
        OneOf(REWARD_TRANSFORMS),
        _shown("identity in low dimension, else that of the reward", _names(REWARD_TRANSFORMS)),
    ] = None
    """Function of the standardized reward that the agent gets."""
    coverage_dims: Annotated[tuple[int, ...] | None, _shown("those of the robot, or 0 1", "D [D ...]")] = None
    """Dimensions of the observation whose visited bins are counted, where the environment is not a maze."""
    bin_width: Annotated[
        float | None, Between(0.0, 1e9, open_low=True), _shown("0.2 standard deviations of the first observations", "X")
    ] = None
    """Width of these bins. Numbers of visited bins can be compared only between runs with the same width."""
    policy_steps: NUpdates = 3000
    """Gradient steps that fit a diffusion policy to the explored transitions, 0 for no such policy."""


POLICIES = ("diffusion", "gaussian")


@dataclass(kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of sb3_exdm.finetune."""

    command = "finetune"

    pretrained: Annotated[Path | None, _shown("train from scratch", "RUN")] = None
    """Run folder of exdm pretrain."""
    policy: Annotated[str, OneOf(POLICIES), arg(metavar=_names(POLICIES))] = "diffusion"
    """The diffusion policy, or a Gaussian policy. After an exploration with sac, both have the same critics, replay buffer
    and warm-up."""
    start: Annotated[str, OneOf(STARTS), arg(metavar=_names(STARTS))] = "last"
    """Pre-trained Gaussian policy to start from: the one that explored, as it was at the end, or one fitted to all explored
    transitions by behavior cloning."""
    warm_up: Annotated[str | None, OneOf(WARM_UPS), _shown("mixed, or gaussian for --policy gaussian", _names(WARM_UPS))] = (
        None
    )
    """Pre-trained policies that collect transitions before the first update: each in half of the environments, or one."""
    correlation: Annotated[float, Between(0.0, 1.0, open_high=True)] = 0.6
    """Correlation of the noise of the pre-trained policies from one step to the next, below 1."""
    algo: Annotated[str | None, OneOf(ALGORITHMS), _shown("that of the pre-training, or sac", _names(ALGORITHMS))] = None
    """Reinforcement learning algorithm."""
    operator: Annotated[str | None, Registered(OPERATORS), _shown("select", _names(OPERATORS))] = None
    """Policy improvement operator of the diffusion policy. "module:NAME" imports the module that registers it first."""
    operator_kwargs: PlainDict = field(default_factory=dict)
    """Arguments of the operator, e.g. '{"ent_coef": 0.02}'."""
    reuse_data: bool = False
    """Relabel the transitions of the pre-training with the task reward, and learn from them too."""
    offline_updates: NUpdates = 5000
    """Updates on relabeled transitions before the first step."""
    critic_updates: Annotated[Updates | None, _shown("2000, or 0 in profile low_dim and from scratch")] = None
    """Updates of the critic alone when learning begins, so that a new critic does not mislead a pre-trained policy."""
    kl_steps: Annotated[Updates | None, _shown("16000, or 0 in profile low_dim, from scratch and for ppo")] = None
    """Steps over which the KL regularization of a pre-trained Gaussian policy is annealed to zero."""
    distill_steps: NUpdates = 4000
    """Gradient steps that distill the fine-tuned policy into a single diffusion policy, policy.safetensors; 0 for none."""
    eval_freq: Positive = 2500
    """Steps between two evaluations; one is made before the first step and one at the end."""
    n_eval_episodes: Annotated[Episodes | None, _shown("50, or 10 if episodes are long")] = None
    """Episodes of an evaluation."""
    video: bool = False
    """Record an episode at the end: video.mp4 in the run folder."""


@dataclass(kw_only=True)
class CloneConfig(Config):
    """Settings of sb3_exdm.clone."""

    gradient_steps: Annotated[int, Between(1, 10**9), arg(name="steps", metavar="N")] = 3000
    """Gradient steps."""
    batch_size: Annotated[BatchSize, arg(metavar="N")] = 512
    """Transitions of a minibatch."""
    seed: SeedNumber = 0
    """Seed of everything."""
    policy_kwargs: PlainDict = field(default_factory=dict)
    """Arguments of the policy, e.g. '{"net_arch": [256, 256], "n_sampling_steps": 10}'."""


@dataclass(kw_only=True)
class EvaluateConfig(Config):
    """Settings of sb3_exdm.evaluate."""

    n_episodes: Annotated[Episodes | None, arg(name="episodes"), _shown("50, or 10 if they are long")] = None
    """Number of episodes."""
    seed: SeedNumber = 0
    """Seed of the environments."""
    deterministic: bool = True
    """Act deterministically, rather than sample actions."""
    env_kwargs: Annotated[dict[str, Any] | None, _JSON, _shown("those of the run", "JSON")] = None
    """Arguments of the environment, e.g. '{"goal_cell": "farthest"}'."""
