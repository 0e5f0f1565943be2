"""How good an agent is: returns and successes of whole episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs import expert_return
from sb3_exdm.policies.diffusion_actor import DiffusionActor
from sb3_exdm.runs.folder import CONFIG, RunFolder
from sb3_exdm.runs.hyperparams import check_device, make_training_env

MAX_ENVS = 50
"""Most environments that are stepped together."""

LONG_EPISODE = 200
"""Environments whose episodes can have more steps than this are evaluated on few of them."""

EVALUATION_SEED = 1_000_000
"""Added to a seed, so that evaluations begin elsewhere than training."""


@dataclass
class Evaluation:
    """
    What :func:`evaluate` measured.

    :param returns: undiscounted return of each episode, ``(n_episodes,)``
    :param lengths: steps of each episode, ``(n_episodes,)``
    :param successes: whether ``info["is_success"]`` was ever true in it, ``(n_episodes,)``; None if the environment does not
        say
    :param expert: what an expert reaches, None where that is not known
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


def evaluate(
    agent: str | Path | BaseAlgorithm | DiffusionActor,
    env_id: str | None = None,
    n_episodes: int | None = None,
    *,
    seed: int = 0,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
) -> Evaluation:
    """
    Play whole episodes.

    :param agent: run folder, file of a diffusion policy, or an agent in memory
    :param env_id: id of the environment, by default that of the run folder
    :param n_episodes: number of episodes, by default 50, or 10 if they are long
    :param seed: seed of the environments
    :param deterministic: whether the agent acts deterministically
    :param env_kwargs: arguments of the environment, by default those of the run folder
    :param device: PyTorch device
    :raises ValueError: for arguments out of range, or an environment that the agent was not trained for
    :raises ArtifactError: if the folder or file cannot be used
    """
    check_integers(n_episodes=(1 if n_episodes is None else n_episodes, 1), seed=(seed, 0))
    player, env, env_id = open_agent(agent, env_id, n_episodes, seed, env_kwargs, device)
    try:
        n_episodes = n_episodes or default_n_episodes(env_id)
        return play(player, env, n_episodes, deterministic, expert_return(env_id))
    finally:
        env.close()


def open_agent(
    agent: str | Path | BaseAlgorithm | DiffusionActor,
    env_id: str | None,
    n_episodes: int | None,
    seed: int,
    env_kwargs: dict[str, Any] | None,
    device: str,
    **more_env_kwargs: Any,
) -> tuple[PolicyPredictor, VecEnv, str]:
    """
    An agent, environments to watch it in, and their id.

    :param agent: run folder, file of a diffusion policy, or an agent in memory
    :param env_id: id of the environment, by default that of the run folder
    :param n_episodes: episodes that will be played, None for as many as usual
    :param seed: seed of the environments
    :param env_kwargs: arguments of the environment, by default those of the run folder
    :param device: PyTorch device
    :param more_env_kwargs: further arguments of the environment
    :raises ValueError: for an environment that the agent was not trained for
    :raises ArtifactError: if the folder or file cannot be used
    """
    config: dict[str, Any] = {}
    folder = None
    if isinstance(agent, (str, Path)):
        check_device(device)
        if Path(agent).is_file():
            agent = DiffusionActor.load(agent, device)
        elif (Path(agent) / CONFIG).is_file():
            folder = RunFolder(agent)
            config = folder.config
        else:
            raise ArtifactError(f"{agent} is neither a run folder nor the file of a policy.")
    env_id = env_id or config.get("env_id")
    if env_id is None:
        raise ValueError("Name the environment: only a run folder knows its own.")
    env_kwargs = {**((config.get("env_kwargs") if env_kwargs is None else env_kwargs) or {}), **more_env_kwargs}
    env = make_evaluation_env(env_id, n_episodes or default_n_episodes(env_id), seed, env_kwargs)
    try:
        if folder is not None:
            agent = folder.load_model(env, device)
            env = agent.get_env() or env
        elif isinstance(agent, BaseAlgorithm):
            env = _normalized_like(agent, env)
        assert isinstance(agent, (BaseAlgorithm, DiffusionActor))
        if agent.observation_space != env.observation_space or agent.action_space != env.action_space:
            raise ValueError(
                f"The agent was trained with {agent.observation_space} and {agent.action_space}, {env_id} has "
                f"{env.observation_space} and {env.action_space}."
            )
    except BaseException:
        env.close()
        raise
    return Predictor(agent) if isinstance(agent, DiffusionActor) else agent, env, env_id


def _normalized_like(agent: BaseAlgorithm, env: VecEnv) -> VecEnv:
    """``env`` with the normalization that the agent was trained with."""
    normalizer = agent.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return env
    normalized = VecNormalize(env, training=False, norm_reward=False, clip_obs=normalizer.clip_obs, epsilon=normalizer.epsilon)
    normalized.obs_rms = normalizer.obs_rms
    return normalized


def default_n_episodes(env_id: str) -> int:
    """
    Episodes that tell enough about an agent without taking longer than its training.

    :param env_id: id of the environment
    :raises ValueError: if there is no such environment
    """
    try:
        limit = gym.spec(env_id).max_episode_steps
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"Cannot make the environment {env_id!r}: {error}") from error
    return 10 if limit is None or limit > LONG_EPISODE else 50


def make_evaluation_env(env_id: str, n_episodes: int, seed: int, env_kwargs: dict[str, Any] | None) -> VecEnv:
    """
    :param env_id: id of the environment
    :param n_episodes: episodes that will be played
    :param seed: seed of the environments, set apart from those of training
    :param env_kwargs: arguments of the environment
    """
    return make_training_env(env_id, min(n_episodes, MAX_ENVS), EVALUATION_SEED + seed, env_kwargs)


def play(
    agent: PolicyPredictor,
    env: VecEnv,
    n_episodes: int,
    deterministic: bool = True,
    expert: float | None = None,
) -> Evaluation:
    """
    :param agent: anything with Stable-Baselines3's ``predict``
    :param env: environments; running moments of a ``VecNormalize`` stay as they are
    :param n_episodes: number of episodes
    :param deterministic: whether the agent acts deterministically
    :param expert: what an expert reaches, None where that is not known
    """
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
    ongoing = np.zeros(env.num_envs, dtype=bool)
    successes: list[bool] = []
    reported = False

    def on_step(local: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal reported
        i, info = local["i"], local["info"]
        reported = reported or "is_success" in info
        ongoing[i] |= bool(info.get("is_success", False))
        if local["done"]:
            successes.append(bool(ongoing[i]))
            ongoing[i] = False

    returns, lengths = evaluate_policy(
        agent, env, n_episodes, deterministic, callback=on_step, return_episode_rewards=True, warn=False
    )
    return Evaluation(np.array(returns), np.array(lengths), np.array(successes) if reported else None, expert)


class Predictor:
    """A diffusion policy that answers as Stable-Baselines3's models do."""

    def __init__(self, actor: DiffusionActor) -> None:
        self.actor = actor

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        return self.actor.predict(observation, deterministic), state
