"""Adapting to a task with a reward."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs import expert_return
from sb3_exdm.finetuning.callback import DiffusionFinetuneCallback
from sb3_exdm.finetuning.distillation import distill
from sb3_exdm.finetuning.gaussian import WarmUpCallback
from sb3_exdm.finetuning.operators import check_operator, make_operator
from sb3_exdm.finetuning.relabel import relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.plots import plot_learning_curve
from sb3_exdm.policies.diffusion_actor import POLICY
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy
from sb3_exdm.recipes.evaluation import EVALUATION_SEED, Predictor, default_n_episodes, make_evaluation_env, play
from sb3_exdm.recipes.evaluation_callback import EvaluationCallback
from sb3_exdm.recipes.training import check_plain, train
from sb3_exdm.recipes.video import check_video, record_video
from sb3_exdm.runs.folder import PROGRESS, VIDEO, ProgressLog, RunFolder
from sb3_exdm.runs.hyperparams import (
    build_algorithm,
    check_algorithm,
    check_device,
    default_critic_updates,
    default_kl_steps,
    default_settings,
    finetune_settings,
    make_training_env,
    needs_normalization,
)

POLICIES = ("diffusion", "gaussian")


@dataclass
class FinetunedRun:
    """
    What :func:`finetune` returns.

    :param path: the run folder, None if nothing was written
    :param summary: figures of the run, the content of ``summary.json``
    :param model: the agent
    """

    path: Path | None
    summary: dict[str, Any]
    model: BaseAlgorithm


def finetune(
    env_id: str | None = None,
    total_timesteps: int = 20_000,
    *,
    pretrained: str | Path | None = None,
    policy: str = "diffusion",
    operator: str = "select",
    seed: int = 0,
    n_envs: int = 8,
    vec_env: str = "auto",
    reuse_data: bool = False,
    reward_fn: Callable[..., Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    env_kwargs: dict[str, Any] | None = None,
    algo_kwargs: dict[str, Any] | None = None,
    operator_kwargs: dict[str, Any] | None = None,
    offline_updates: int = 5000,
    critic_updates: int | None = None,
    kl_steps: int | None = None,
    distill_steps: int = 4000,
    device: str = "auto",
    eval_freq: int = 2500,
    n_eval_episodes: int | None = None,
    video: bool = False,
    progress_bar: bool = True,
) -> FinetunedRun:
    """
    Adapt a pre-trained agent to the reward of an environment, or train from scratch.

    :param env_id: id of the environment, by default the one of the pre-training
    :param total_timesteps: number of steps, over all environments together
    :param pretrained: run folder of :func:`~sb3_exdm.pretrain`; None trains from scratch
    :param policy: ``"diffusion"``, or ``"gaussian"`` for the agent that explored, with the algorithm that trained it
    :param operator: how the diffusion policy is improved, a name in :data:`~sb3_exdm.finetuning.operators.OPERATORS`
    :param seed: seed of everything
    :param n_envs: number of environments that are stepped together
    :param vec_env: how: ``"auto"`` (the fastest in one process), ``"dummy"`` or ``"subproc"`` (each in a process of its own)
    :param reuse_data: begin with the transitions of the pre-training, worth what the environment or ``reward_fn`` says
    :param reward_fn: maps observations, actions and next observations, each ``(n, ...)``, to rewards ``(n,)``, or to rewards
        and whether the episode terminates there
    :param out: run folder to write; None writes nothing
    :param overwrite: replace the run that ``out`` holds
    :param env_kwargs: arguments of the environment, on top of those of the pre-training if it is the same
    :param algo_kwargs: changes to the settings of the algorithm, plain data
    :param operator_kwargs: arguments of the operator, plain data
    :param offline_updates: updates on reused data before the first step
    :param critic_updates: updates of the critic alone, when learning begins, so that a pre-trained policy is not led by a
        critic that knows nothing; by default 2000, but none for small bounded observations, nor from scratch
    :param kl_steps: steps, from the beginning of learning, over which a pre-trained Gaussian is held near what it was, and
        let go; by default 16,000, but none for small bounded observations, and never for ppo and the diffusion policy
    :param distill_steps: gradient steps that distill a fine-tuned diffusion policy, with all that took part, into a single one
        (``policy.safetensors``), 0 for none
    :param device: PyTorch device
    :param eval_freq: steps between two evaluations; one is made before the first step and one at the end
    :param n_eval_episodes: episodes of an evaluation, by default 50, or 10 if they are long
    :param video: film an episode at the end (``video.mp4``)
    :param progress_bar: show a progress bar on a terminal
    :raises ValueError: for arguments out of range, an unknown name, or an environment that cannot be used
    :raises ArtifactError: if the pre-trained run cannot be used
    :raises FileExistsError: if ``out`` holds a run already, or is a file
    :raises RunInterrupted: if stopped from the keyboard; what was learned is kept in ``out``
    """
    check_integers(
        total_timesteps=(total_timesteps, 1),
        seed=(seed, 0),
        n_envs=(n_envs, 1),
        offline_updates=(offline_updates, 0),
        critic_updates=(0 if critic_updates is None else critic_updates, 0),
        kl_steps=(0 if kl_steps is None else kl_steps, 0),
        distill_steps=(distill_steps, 0),
        eval_freq=(eval_freq, 1),
        n_eval_episodes=(1 if n_eval_episodes is None else n_eval_episodes, 1),
    )
    _check_choices(policy, operator, kl_steps, device, pretrained, reuse_data, reward_fn, out, video)
    source = None if pretrained is None else RunFolder(pretrained)
    if env_id is None:
        if source is None:
            raise ValueError("Name an environment, or a run folder of a pre-training, which knows its own.")
        env_id = source.config["env_id"]
    algo = "sac" if source is None or policy == "diffusion" else source.config["algo"]
    if source is not None and env_id == source.config["env_id"]:
        env_kwargs = {**source.config["env_kwargs"], **(env_kwargs or {})}
    n_eval_episodes = n_eval_episodes or default_n_episodes(env_id)
    env = make_training_env(env_id, n_envs, seed, env_kwargs, vec_env)
    evaluation_env = make_evaluation_env(env_id, n_eval_episodes, seed, env_kwargs)
    try:
        check_algorithm(algo, env.action_space, env_id)
        transitions = None
        if reuse_data:
            assert source is not None
            transitions = relabel(source.transitions(), env, reward_fn)
        settings = _settings(algo, policy, source, env, algo_kwargs or {})
        if critic_updates is None:
            critic_updates = 0 if source is None else default_critic_updates(env.observation_space)
        if kl_steps is None:
            is_held = source is not None and policy == "gaussian" and algo != "ppo"
            kl_steps = default_kl_steps(env.observation_space) if is_held else 0
        config = {
            "command": "finetune",
            "env_id": env_id,
            "total_timesteps": total_timesteps,
            "pretrained": None if pretrained is None else str(pretrained),
            "algo": algo,
            "policy": policy,
            "operator": operator if policy == "diffusion" else None,
            "reuse_data": reuse_data,
            "seed": seed,
            "n_envs": n_envs,
            "vec_env": vec_env,
            "env_kwargs": env_kwargs or {},
            "algo_kwargs": settings,
            "operator_kwargs": operator_kwargs or {},
            "offline_updates": offline_updates,
            "critic_updates": critic_updates,
            "kl_steps": kl_steps,
            "distill_steps": distill_steps,
            "n_eval_episodes": n_eval_episodes,
        }
        check_plain(config)
        try:
            model = _build(algo, policy, source, env, settings, seed, device, total_timesteps)
        except TypeError as error:
            raise ValueError(f"algo_kwargs hold an argument that does not exist: {error}.") from error
        if transitions is not None:
            if not isinstance(model, OffPolicyAlgorithm):
                raise ValueError(f"{algo} learns only from its own transitions; reuse_data needs sac, td3 or ddpg.")
            assert isinstance(model.replay_buffer, FinetuneReplayBuffer)
            model.replay_buffer.add_offline(transitions)
        if policy == "diffusion":
            with th.random.fork_rng(devices=[]):  # only to refuse bad arguments before anything is written
                make_operator(operator, model.policy, **(operator_kwargs or {}))  # type: ignore[arg-type]
        folder = None
        if out is not None:
            folder = RunFolder(out)
            folder.create(config, overwrite)
        run = _adapt(config, model, evaluation_env, folder, eval_freq, operator_kwargs, progress_bar)
        if folder is not None and video:
            record_video(model, folder.path / VIDEO, env_id, seed=seed, env_kwargs=env_kwargs)
        return run
    finally:
        env.close()
        evaluation_env.close()


def _check_choices(
    policy: str,
    operator: str,
    kl_steps: int | None,
    device: str,
    pretrained: str | Path | None,
    reuse_data: bool,
    reward_fn: Callable[..., Any] | None,
    out: str | Path | None,
    video: bool,
) -> None:
    if policy not in POLICIES:
        raise ValueError(f"Unknown policy {policy!r}; choose one of {', '.join(POLICIES)}.")
    check_operator(operator)
    check_device(device)
    if kl_steps and policy != "gaussian":
        raise ValueError('kl_steps hold a pre-trained Gaussian; they need policy="gaussian".')
    if reward_fn is not None and not reuse_data:
        raise ValueError("reward_fn says what the transitions of the pre-training are worth; it needs reuse_data=True.")
    if reuse_data and pretrained is None:
        raise ValueError("reuse_data=True needs the run folder of a pre-training (pretrained=).")
    if video and out is None:
        raise ValueError("A video needs a run folder to be written to (out=).")
    if video:
        check_video(VIDEO)


def _settings(algo: str, policy: str, source: RunFolder | None, env: VecEnv, changes: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the algorithm, plain data."""
    shared = finetune_settings(env.observation_space, env.num_envs)
    policy_kwargs = dict(changes.get("policy_kwargs", {}))
    changes = {key: value for key, value in changes.items() if key != "policy_kwargs"}
    if policy == "diffusion":
        pretrained = {} if source is None else {"pretrained": str(source.path)}
        return {
            **shared,
            "policy": "DiffusionPolicy",
            **changes,
            "policy_kwargs": {**shared["policy_kwargs"], **pretrained, **policy_kwargs},
        }
    # What explored keeps the shape of its networks; how it learns is that of fine-tuning.
    known = default_settings(algo, env.observation_space, env.action_space) if source is None else source.config["algo_kwargs"]
    known_kwargs = known.get("policy_kwargs", {})
    if algo == "ppo":
        return {**known, **changes, "policy_kwargs": {**known_kwargs, **policy_kwargs}}
    if algo == "sac":
        shared.update(ent_coef="auto_0.01", target_entropy="auto")
    else:
        known = {**known, "action_noise_std": 0.1}
    n_critics = {} if algo == "ddpg" else {"n_critics": 2}
    return {**known, **shared, **changes, "policy_kwargs": {**known_kwargs, **n_critics, **policy_kwargs}}


def _build(
    algo: str,
    policy: str,
    source: RunFolder | None,
    env: VecEnv,
    settings: dict[str, Any],
    seed: int,
    device: str,
    total_timesteps: int,
) -> BaseAlgorithm:
    """The algorithm, with pre-trained weights where there are some."""
    kwargs: dict[str, Any] = {"seed": seed, "device": device}
    if algo != "ppo":
        kwargs.update(
            buffer_size=min(total_timesteps, 1_000_000),
            replay_buffer_class=FinetuneReplayBuffer,
            replay_buffer_kwargs={"gamma": settings["gamma"]},
        )
    if policy == "diffusion":
        return build_algorithm(algo, env, settings, **kwargs)
    if source is None:
        normalized = VecNormalize(env, norm_reward=False) if needs_normalization(env.observation_space) else env
        return build_algorithm(algo, normalized, settings, **kwargs)
    explorer = source.load_model(env, device)
    explored_env = explorer.get_env()
    assert explored_env is not None
    model = build_algorithm(algo, explored_env, settings, **kwargs)
    _take_over(model, explorer)
    return model


def _take_over(model: BaseAlgorithm, explorer: BaseAlgorithm) -> None:
    """
    The weights that act come from the explorer. Values, temperature and states of optimizers are those of another reward, and
    begin anew.
    """
    if isinstance(model, PPO):
        weights = explorer.policy.state_dict()
        acting = {key: value for key, value in weights.items() if "value_net" not in key and "vf_features" not in key}
        model.policy.load_state_dict(acting, strict=False)
        return
    assert isinstance(model, (SAC, TD3, DDPG)) and isinstance(explorer, (SAC, TD3, DDPG))
    model.actor.load_state_dict(explorer.actor.state_dict())
    if isinstance(model, TD3):
        model.actor_target.load_state_dict(explorer.actor.state_dict())


def _adapt(
    config: dict[str, Any],
    model: BaseAlgorithm,
    evaluation_env: VecEnv,
    folder: RunFolder | None,
    eval_freq: int,
    operator_kwargs: dict[str, Any] | None,
    progress_bar: bool,
) -> FinetunedRun:
    """Train, then write and draw what came out."""
    total_timesteps = config["total_timesteps"]
    log = None if folder is None else ProgressLog(folder.path / PROGRESS)
    expert = expert_return(config["env_id"])
    progress = EvaluationCallback(
        total_timesteps, evaluation_env, eval_freq, config["n_eval_episodes"], expert, config["seed"], log, progress_bar
    )
    callbacks: list[BaseCallback] = []
    if config["policy"] == "diffusion":
        callbacks.append(
            DiffusionFinetuneCallback(
                config["operator"],
                operator_kwargs=operator_kwargs,
                offline_updates=config["offline_updates"],
                critic_updates=config["critic_updates"],
            )
        )
    elif isinstance(model, OffPolicyAlgorithm):
        callbacks.append(
            WarmUpCallback(
                config["offline_updates"], config["critic_updates"], config["kl_steps"], config["pretrained"] is None
            )
        )
    train(
        model,
        total_timesteps,
        [*callbacks, progress],
        folder=folder,
        log=log,
        log_interval=1 if config["algo"] == "ppo" else 40,
    )
    keys = ("command", "env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed", "n_envs")
    explored = {} if config["pretrained"] is None else RunFolder(config["pretrained"]).config
    summary = {
        **{key: config[key] for key in keys},
        "pretrained_reward": explored.get("reward"),
        "pretrained_timesteps": explored.get("total_timesteps"),
        "timesteps": model.num_timesteps,
        "seconds": round(progress.seconds, 2),
        "steps_per_second": round(model.num_timesteps / max(progress.seconds, 1e-9), 1),
        **progress.evaluations[-1].summary(),
        "torch_threads": th.get_num_threads(),
    }
    exported = None
    if isinstance(model.policy, DiffusionPolicy) and config["distill_steps"]:
        assert isinstance(model, OffPolicyAlgorithm) and isinstance(model.replay_buffer, FinetuneReplayBuffer)
        if model.policy.acting == ActionSelection():  # it acts alone already
            exported = model.policy.actor
        else:
            exported = distill(model.policy, model.replay_buffer, config["distill_steps"], seed=config["seed"])
        evaluation_env.seed(EVALUATION_SEED + config["seed"])
        figures = play(Predictor(exported), evaluation_env, config["n_eval_episodes"], expert=expert).summary()
        summary.update({f"exported_{key}": figures[key] for key in ("mean_reward", "success_rate", "normalized_score")})
    if folder is not None:
        if exported is not None:
            exported.save(folder.path / POLICY)
        folder.save_models(model, None)
        plot_learning_curve(
            [report["timesteps"] for report in progress.reports],
            np.array([evaluation.returns for evaluation in progress.evaluations]),
            folder.path / "learning_curve.png",
            success=None
            if progress.evaluations[-1].successes is None
            else [report["success_rate"] for report in progress.reports],
            title=f"{config['env_id']}, {config['operator'] or config['algo']}",
        )
        folder.write_summary(summary)
    return FinetunedRun(None if folder is None else folder.path, summary, model)
