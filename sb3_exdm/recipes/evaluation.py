"""Evaluation: returns and successes of whole episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.resources import resolve_device
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.policies.diffusion_actor import DiffusionActor
from sb3_exdm.runs.config import EvaluateConfig
from sb3_exdm.runs.envs import EnvLike, EnvSource
from sb3_exdm.runs.folder import RunFolder

Agent = str | Path | BaseAlgorithm | DiffusionActor
"""A run folder, the file of a diffusion policy, or an agent in memory."""

MAX_ENVS = 50
"""Most environments that are stepped together."""

LONG_EPISODE = 200
"""Episodes that can have more steps than this are evaluated on few of them."""

EVALUATION_SEED = 1_000_000
"""Offset of the seed, so that evaluations start from other states than training."""


@dataclass(repr=False)
class Evaluation:
    """
    Result of :func:`evaluate`.

    :param returns: undiscounted return of each episode, ``(n_episodes,)``
    :param lengths: steps of each episode, ``(n_episodes,)``
    :param successes: whether ``info["is_success"]`` was ever true in it, ``(n_episodes,)``; None if the environment does not
        report it
    :param expert: published return of an expert, None if there is none
    """

    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None
    expert: float | None = None

    def summary(self) -> dict[str, Any]:
        """Means, as plain data."""
        return {
            "n_episodes": len(self.returns),
            "mean_reward": float(self.returns.mean()),
            "std_reward": float(self.returns.std()),
            "mean_length": float(self.lengths.mean()),
            "success_rate": None if self.successes is None else float(self.successes.mean()),
            "expert_return": self.expert,
            "normalized_score": None if self.expert is None else float(self.returns.mean() / self.expert),
        }

    def __repr__(self) -> str:
        figures = self.summary()
        shown = "" if self.successes is None else f", success_rate={figures['success_rate']:.3g}"
        return f"Evaluation({figures['n_episodes']} episodes, mean_reward={figures['mean_reward']:.4g}{shown})"


def evaluate(
    agent: Agent, env: EnvLike | None = None, n_episodes: int | None = None, *, device: str = "auto", **settings: Any
) -> Evaluation:
    """
    Evaluate an agent on whole episodes.

    :param agent: run folder, file of a diffusion policy, or an agent in memory
    :param env: id, spec, environment class, or function that returns an environment; by default that of the run folder
    :param n_episodes: number of episodes, by default 50, or 10 if they are long
    :param device: PyTorch device
    :param settings: further fields of :class:`~sb3_exdm.runs.config.EvaluateConfig`: ``seed``, ``deterministic``,
        ``env_kwargs`` (by default those of the run folder)
    :raises ValueError: for an unknown setting, a value out of range, or an environment with other spaces than the agent's
    :raises ArtifactError: if the folder or file cannot be used
    """
    config = EvaluateConfig.make(n_episodes=n_episodes, **settings)
    player, source, vec_env = open_agent(agent, env, config.n_episodes, config.seed, config.env_kwargs, device)
    try:
        n_episodes = config.n_episodes or default_n_episodes(source)
        return play(player, vec_env, n_episodes, config.deterministic, source.factory.expert_return(source.id))
    finally:
        vec_env.close()


def open_agent(
    agent: Agent,
    env: EnvLike | None,
    n_episodes: int | None,
    seed: int,
    env_kwargs: dict[str, Any] | None,
    device: str,
    **more_env_kwargs: Any,
) -> tuple[PolicyPredictor, EnvSource, VecEnv]:
    """
    Load an agent and make environments to evaluate it in.

    :param agent: run folder, file of a diffusion policy, or an agent in memory
    :param env: environment, by default that of the run folder
    :param n_episodes: number of episodes, None for the default
    :param seed: seed of the environments
    :param env_kwargs: arguments of the environment, by default those of the run folder
    :param device: PyTorch device
    :param more_env_kwargs: further arguments of the environment
    :raises ValueError: for an environment with other spaces than the agent's
    :raises ArtifactError: if the folder or file cannot be used
    """
    config: dict[str, Any] = {}
    folder = None
    if isinstance(agent, (str, Path)):
        resolve_device(device)
        if Path(agent).is_file():
            agent = DiffusionActor.load(agent, device)
        elif RunFolder(agent).exists():
            folder = RunFolder(agent)
            config = folder.config
        else:
            raise ArtifactError(f"{agent} is neither a run folder nor the file of a policy.")
    if env is None:
        env = config.get("env_id")
    if env is None:
        raise ValueError("Name the environment: only a run folder knows its own.")
    source = EnvSource.of(env)
    env_kwargs = {**((config.get("env_kwargs") if env_kwargs is None else env_kwargs) or {}), **more_env_kwargs}
    vec_env = make_evaluation_env(source, n_episodes or default_n_episodes(source), seed, env_kwargs)
    try:
        if folder is not None:
            agent = folder.load_model(vec_env, device)
            vec_env = agent.get_env() or vec_env
        elif isinstance(agent, BaseAlgorithm):
            vec_env = _normalized_like(agent, vec_env)
        assert isinstance(agent, (BaseAlgorithm, DiffusionActor))
        if agent.observation_space != vec_env.observation_space or agent.action_space != vec_env.action_space:
            raise ValueError(
                f"The agent was trained with {agent.observation_space} and {agent.action_space}, {source.id} has "
                f"{vec_env.observation_space} and {vec_env.action_space}."
            )
    except BaseException:
        vec_env.close()
        raise
    return Predictor(agent) if isinstance(agent, DiffusionActor) else agent, source, vec_env


def _normalized_like(agent: BaseAlgorithm, env: VecEnv) -> VecEnv:
    """``env`` with the observation normalization that the agent was trained with."""
    normalizer = agent.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return env
    normalized = VecNormalize(env, training=False, norm_reward=False, clip_obs=normalizer.clip_obs, epsilon=normalizer.epsilon)
    normalized.obs_rms = normalizer.obs_rms
    return normalized


def default_n_episodes(source: EnvSource) -> int:
    """
    Choose a number of episodes that is informative and takes less time than training.

    :param source: environment
    """
    limit = source.max_episode_steps()
    return 10 if limit is None or limit > LONG_EPISODE else 50


def make_evaluation_env(source: EnvSource, n_episodes: int, seed: int, env_kwargs: dict[str, Any] | None) -> VecEnv:
    """
    Make environments for an evaluation.

    :param source: environment
    :param n_episodes: number of episodes
    :param seed: seed of the run; that of the environments is another one
    :param env_kwargs: arguments of the environment
    """
    return source.make_vec(min(n_episodes, MAX_ENVS), EVALUATION_SEED + seed, env_kwargs)


def play(
    agent: PolicyPredictor,
    env: VecEnv,
    n_episodes: int,
    deterministic: bool = True,
    expert: float | None = None,
) -> Evaluation:
    """
    Run whole episodes.

    :param agent: object with Stable-Baselines3's ``predict``
    :param env: environments; running moments of a ``VecNormalize`` are not updated
    :param n_episodes: number of episodes
    :param deterministic: whether the agent acts deterministically
    :param expert: published return of an expert, None if there is none
    """
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
    succeeded = np.zeros(env.num_envs, dtype=bool)
    successes: list[bool] = []
    reported = False

    def on_step(local: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal reported
        i, info = local["i"], local["info"]
        reported = reported or "is_success" in info
        succeeded[i] |= bool(info.get("is_success", False))
        if local["done"]:
            successes.append(bool(succeeded[i]))
            succeeded[i] = False

    returns, lengths = evaluate_policy(
        agent, env, n_episodes, deterministic, callback=on_step, return_episode_rewards=True, warn=False
    )
    return Evaluation(np.array(returns), np.array(lengths), np.array(successes) if reported else None, expert)


class Predictor:
    """
    A diffusion policy with the ``predict`` of Stable-Baselines3's models.

    :param actor: diffusion policy
    """

    def __init__(self, actor: DiffusionActor) -> None:
        self.actor = actor

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        return self.actor.predict(observation, deterministic), state
