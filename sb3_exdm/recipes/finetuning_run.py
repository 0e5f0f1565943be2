"""Fine-tuning on a task with a reward."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_exdm.common.resources import resolve_device
from sb3_exdm.common.stopwatch import Stopwatch
from sb3_exdm.common.validation import check_kwargs
from sb3_exdm.finetuning.callback import DiffusionFinetuneCallback
from sb3_exdm.finetuning.distillation import distill
from sb3_exdm.finetuning.gaussian import FINETUNE_ALGORITHMS, GaussianFinetuneCallback
from sb3_exdm.finetuning.operators import OPERATORS, make_operator
from sb3_exdm.finetuning.relabel import RewardFn, relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.plots import plot_learning_curve
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy
from sb3_exdm.recipes.checkpointing import Checkpointing
from sb3_exdm.recipes.evaluation import EVALUATION_SEED, Predictor, default_n_episodes, make_evaluation_env, play
from sb3_exdm.recipes.evaluation_callback import EvaluationCallback
from sb3_exdm.recipes.training import as_list, begin, check_arguments, close_env, draw_or_warn, train
from sb3_exdm.recipes.video import check_video, record_video
from sb3_exdm.runs.config import FinetuneConfig
from sb3_exdm.runs.envs import EnvLike, EnvSource, normalized
from sb3_exdm.runs.folder import VIDEO, RunFolder
from sb3_exdm.runs.hyperparams import (
    MAX_BUFFER_SIZE,
    PROFILES,
    build_algorithm,
    check_action_space,
    check_algo_kwargs,
    default_profile,
    diffusion_hyperparams,
    finetune_hyperparams,
    merge,
)

_FACTS = ("env_id", "algo", "policy", "start", "warm_up", "operator", "reuse_data", "seed", "n_envs")
"""Settings in the summary of a run."""


@dataclass(repr=False)
class FinetunedRun:
    """
    Result of :func:`finetune`.

    :param path: run folder, None if nothing was written
    :param summary: figures of the run, the contents of ``summary.json``
    :param model: agent
    """

    path: Path | None
    summary: dict[str, Any]
    model: BaseAlgorithm

    def __repr__(self) -> str:
        figures = self.summary
        rate = "" if figures["success_rate"] is None else f", success_rate={figures['success_rate']:.3g}"
        return (
            f"FinetunedRun({figures['env_id']}, {figures['timesteps']} steps, mean_reward={figures['mean_reward']:.4g}{rate}, "
            f"path={str(self.path)!r})"
        )


def finetune(
    env: EnvLike | None = None,
    total_timesteps: int = 20_000,
    *,
    pretrained: str | Path | None = None,
    reward_fn: RewardFn | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    callback: MaybeCallback = None,
    device: str = "auto",
    progress_bar: bool = True,
    **settings: Any,
) -> FinetunedRun:
    """
    Fine-tune a pre-trained agent on the reward of an environment, or train from scratch.

    :param env: id, spec, environment class, or function that returns an environment; by default that of the pre-training
    :param total_timesteps: number of steps, over all environments together
    :param pretrained: run folder of :func:`~sb3_exdm.pretrain`; None trains from scratch
    :param reward_fn: task reward of recorded transitions, for ``reuse_data=True`` where the environment cannot compute it;
        maps observations, actions and next observations, each ``(n, ...)``, to rewards ``(n,)``, or to rewards and
        terminations
    :param out: run folder to write; None writes nothing
    :param overwrite: replace the run in ``out``
    :param resume: go on with the run in ``out`` from its last checkpoint, with the same settings but for ``total_timesteps``,
        which may be larger; start it if there is none. The results are those of a run that was never interrupted
    :param callback: callback, or list of callbacks, of Stable-Baselines3
    :param device: PyTorch device
    :param progress_bar: show a progress bar on a terminal
    :param settings: further fields of :class:`~sb3_exdm.runs.config.FinetuneConfig`: ``policy``, ``algo``, ``operator``,
        ``operator_kwargs``, ``start``, ``warm_up``, ``correlation``, ``reuse_data``, ``seed``, ``n_envs``, ``vec_env``,
        ``env_kwargs``, ``profile``, ``algo_kwargs``, ``action_noise``, ``offline_updates``, ``critic_updates``, ``kl_steps``,
        ``distill_steps``, ``eval_freq``, ``n_eval_episodes``, ``video``, ``checkpoint_freq``, ``keep_checkpoints``
    :raises ValueError: for an unknown setting or name, a value of the wrong type or out of range, an environment that
        cannot be used, or a run that was made with other settings; nothing is written then
    :raises ArtifactError: if the pre-trained run cannot be used
    :raises FileExistsError: if ``out`` holds a run already, or is a file
    :raises FolderLocked: if another process writes to ``out``
    :raises RunInterrupted: if stopped from the keyboard; a checkpoint is in ``out``
    :raises RunTerminated: if stopped by SIGTERM; a checkpoint is in ``out``
    """
    check_arguments(out, overwrite, resume)
    if "env_id" in settings:
        raise ValueError("env_id is not a setting: pass the environment as the first argument, env.")
    explored = None if pretrained is None else RunFolder(pretrained)
    folder = None if out is None else RunFolder(out)
    if explored is not None and folder is not None and folder.path.resolve() == explored.path.resolve():
        raise ValueError(f"{folder.path} holds the pre-training to start from: choose another output folder.")
    if env is None:
        if explored is None:
            raise ValueError("Name an environment, or the run folder of a pre-training, which knows its own.")
        env = explored.config["env_id"]
    source = EnvSource.of(env)
    config = FinetuneConfig.make(
        env_id=source.id, total_timesteps=total_timesteps, pretrained=None if explored is None else explored.path, **settings
    )
    resolve_device(device)
    config = _check(config, source, explored, has_reward_fn=reward_fn is not None, has_out=out is not None)
    source.check_kwargs(config.env_kwargs)
    given = config
    with contextlib.ExitStack() as stack:
        vec_env = source.make_vec(config.n_envs, config.seed, config.env_kwargs, config.vec_env)
        stack.callback(close_env, vec_env)

        def resolve(total_timesteps: int) -> FinetuneConfig:
            return _resolve(given.with_changes(total_timesteps=total_timesteps), source, vec_env, explored)

        config = resolve(total_timesteps)
        assert config.n_eval_episodes is not None
        evaluation_env = make_evaluation_env(source, config.n_eval_episodes, config.seed, config.env_kwargs)
        stack.callback(evaluation_env.close)
        transitions = relabel(explored.transitions(), vec_env, reward_fn) if config.reuse_data and explored else None
        model = _build(config, vec_env, explored, device)
        if transitions is not None:
            _buffer(model).add_offline(transitions)
        if config.operator is not None and isinstance(model.policy, DiffusionPolicy):
            with th.random.fork_rng(devices=[]):  # refuses values out of range before anything is written
                make_operator(config.operator, model.policy, **config.operator_kwargs)
        run = _Adaptation(config, source, model, evaluation_env, folder, callback, progress_bar)
        if folder is not None:
            stack.enter_context(folder.lock())
        if begin(folder, run.checkpointing, config, resolve, overwrite=overwrite, resume=resume):
            run.train()
            return run.finish(env)
    assert folder is not None
    return FinetunedRun(folder.path, folder.summary, folder.load_model(device=device))


def resolve_finetune(config: FinetuneConfig) -> FinetuneConfig:
    """
    Fill in all defaults, as ``config.json`` holds them.

    :param config: configuration with a registered environment
    """
    explored = None if config.pretrained is None else RunFolder(config.pretrained)
    env_id = config.env_id or (explored.config["env_id"] if explored else None)
    source = EnvSource.of(env_id)  # type: ignore[arg-type]
    config = _check(config.with_changes(env_id=source.id), source, explored, has_reward_fn=False, has_out=True)
    env = source.make_vec(1, config.seed, config.env_kwargs)
    try:
        return _resolve(config, source, env, explored)
    finally:
        env.close()


def _check(
    config: FinetuneConfig, source: EnvSource, explored: RunFolder | None, *, has_reward_fn: bool, has_out: bool
) -> FinetuneConfig:
    """Refuse settings that do not fit each other, before anything is built; fill in what needs no environment."""
    is_diffusion = config.policy == "diffusion"
    explored_config = {} if explored is None else explored.config
    algo = config.algo or ("sac" if is_diffusion else explored_config.get("algo", "sac"))
    if not is_diffusion and explored_config and algo != explored_config["algo"]:
        raise ValueError(
            f"The Gaussian policy in {explored} was trained with {explored_config['algo']}; it cannot go on with {algo}."
        )
    if is_diffusion and algo == "ppo":
        raise ValueError("A diffusion policy needs an off-policy algorithm; choose sac, td3 or ddpg.")
    if algo == "ppo" and config.reuse_data:
        raise ValueError("ppo learns only from its own transitions; reuse_data needs sac, td3 or ddpg.")
    if not is_diffusion and (config.operator is not None or config.operator_kwargs):
        raise ValueError('Operators improve the diffusion policy; operator and operator_kwargs need policy="diffusion".')
    if config.kl_steps and (is_diffusion or explored is None or algo == "ppo"):
        raise ValueError('kl_steps regularizes a pre-trained Gaussian policy of sac, td3 or ddpg; it needs policy="gaussian".')
    if has_reward_fn and not config.reuse_data:
        raise ValueError("reward_fn relabels the transitions of the pre-training; it needs reuse_data=True.")
    if config.reuse_data and explored is None:
        raise ValueError("reuse_data=True needs the run folder of a pre-training (pretrained=).")
    if config.video and not has_out:
        raise ValueError("A video needs a run folder to be written to (out=).")
    if config.video:
        check_video(VIDEO)
    operator = (config.operator or "select") if is_diffusion else None
    if operator is not None:
        check_kwargs(OPERATORS[operator], config.operator_kwargs, "operator_kwargs", ignore=("policy",))
        if "learning_rate" in config.operator_kwargs:
            raise ValueError("The operator uses the learning_rate of the algorithm; set it in algo_kwargs.")
    denoises = _has_diffusion_policy(config.with_changes(algo=algo))
    if not denoises and (config.start != "last" or config.warm_up is not None):
        raise ValueError(
            "start and warm_up choose among the pre-trained policies of an exploration with sac; "
            f"{'there is no pre-training' if explored is None else f'{explored} has none'}."
        )
    check_algo_kwargs(algo, config.algo_kwargs, "DiffusionPolicy" if denoises else "MlpPolicy")
    if algo != "ppo":
        buffer_kwargs = config.algo_kwargs.get("replay_buffer_kwargs") or {}
        ignore = ("buffer_size", "observation_space", "action_space", "device", "n_envs")
        check_kwargs(FinetuneReplayBuffer, buffer_kwargs, "algo_kwargs['replay_buffer_kwargs']", ignore=ignore)
    env_kwargs = config.env_kwargs
    if explored_config and source.id == explored_config["env_id"]:
        env_kwargs = {**explored_config.get("env_kwargs", {}), **env_kwargs}
    return config.with_changes(algo=algo, operator=operator, env_kwargs=env_kwargs)


def _has_diffusion_policy(config: FinetuneConfig) -> bool:
    """
    Tell whether the policy is a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy`, whose Gaussian is trained by the
    operator ``sac`` with ``policy="gaussian"``. Images, other algorithms and agents from scratch have their own policies.
    """
    if config.policy == "diffusion":
        return True
    return config.algo == "sac" and config.pretrained is not None and (config.pretrained / POLICY).is_file()


def _resolve(config: FinetuneConfig, source: EnvSource, env: VecEnv, explored: RunFolder | None) -> FinetuneConfig:
    """Fill in all defaults."""
    assert config.algo is not None
    observation_space, action_space = env.observation_space, env.action_space
    check_action_space(config.algo, action_space, source.id)
    profile = config.profile or default_profile(observation_space)
    is_gaussian = config.policy == "gaussian"
    denoises = _has_diffusion_policy(config)
    if not denoises:
        known = None if explored is None else explored.config.get("algo_kwargs")
        defaults = finetune_hyperparams(config.algo, profile, observation_space, action_space, config.n_envs, known)
    else:
        defaults = diffusion_hyperparams(profile, config.n_envs)
        if explored is not None:
            defaults["policy_kwargs"].update(pretrained=str(explored.path), start=config.start)
    if config.algo != "ppo":
        defaults["buffer_size"] = min(config.total_timesteps, MAX_BUFFER_SIZE)
    has_kl = is_gaussian and explored is not None and config.algo != "ppo"
    changes: dict[str, Any] = {
        "profile": profile,
        "algo_kwargs": merge(defaults, config.algo_kwargs),
        "n_eval_episodes": config.n_eval_episodes or default_n_episodes(source),
    }
    if config.critic_updates is None:
        changes["critic_updates"] = 0 if explored is None else PROFILES[profile].critic_updates
    if config.kl_steps is None:
        changes["kl_steps"] = PROFILES[profile].kl_steps if has_kl else 0
    if denoises and config.warm_up is None:
        changes["warm_up"] = "gaussian" if is_gaussian else "mixed"
    if is_gaussian and config.algo in ("td3", "ddpg") and config.action_noise is None:
        changes["action_noise"] = 0.1
    if config.checkpoint_freq is None:
        changes["checkpoint_freq"] = PROFILES[profile].checkpoint_freq
    return config.with_changes(**changes)


def _build(config: FinetuneConfig, env: VecEnv, explored: RunFolder | None, device: str) -> BaseAlgorithm:
    """The algorithm, with pre-trained weights where there are some."""
    assert config.algo is not None
    kwargs: dict[str, Any] = {"seed": config.seed, "device": device, "action_noise": config.action_noise}
    hyperparams = config.algo_kwargs
    if config.algo != "ppo":
        kwargs["replay_buffer_class"] = FinetuneReplayBuffer
        hyperparams = merge({"replay_buffer_kwargs": {"gamma": hyperparams["gamma"]}}, hyperparams)
    if _has_diffusion_policy(config):
        return build_algorithm(config.algo, env, hyperparams, **kwargs)
    algo_class = FINETUNE_ALGORITHMS.get(config.algo, PPO)
    if explored is None:
        return build_algorithm(algo_class, normalized(env), hyperparams, **kwargs)
    explorer = explored.load_model(env, device)
    model = build_algorithm(algo_class, explorer.get_env(), hyperparams, **kwargs)
    _copy_actor(explorer, model)
    return model


def _copy_actor(explorer: BaseAlgorithm, model: BaseAlgorithm) -> None:
    """Copy the weights that act. Critics, temperature and optimizers belong to another reward and start anew."""
    if isinstance(model, PPO):
        weights = explorer.policy.state_dict()
        acting = {key: value for key, value in weights.items() if "value_net" not in key and "vf_features" not in key}
        model.policy.load_state_dict(acting, strict=False)
        return
    assert isinstance(model, (SAC, TD3, DDPG)) and isinstance(explorer, (SAC, TD3, DDPG))
    model.actor.load_state_dict(explorer.actor.state_dict())
    if isinstance(model, TD3):
        model.actor_target.load_state_dict(explorer.actor.state_dict())


def _buffer(model: BaseAlgorithm) -> FinetuneReplayBuffer:
    assert isinstance(model, OffPolicyAlgorithm) and isinstance(model.replay_buffer, FinetuneReplayBuffer)
    return model.replay_buffer


class _Adaptation:
    """
    A run from its callbacks to its files.

    :param config: settings
    :param source: environment
    :param model: agent
    :param evaluation_env: environments of the evaluations
    :param folder: run folder; None writes nothing
    :param user_callback: callback, or list of callbacks, of the user
    :param progress_bar: show a progress bar on a terminal
    """

    def __init__(
        self,
        config: FinetuneConfig,
        source: EnvSource,
        model: BaseAlgorithm,
        evaluation_env: VecEnv,
        folder: RunFolder | None,
        user_callback: MaybeCallback,
        progress_bar: bool,
    ) -> None:
        assert config.n_eval_episodes is not None
        self.config = config
        self.model = model
        self.evaluation_env = evaluation_env
        self.folder = folder
        self.stopwatch = Stopwatch()
        self.log = None if folder is None else folder.progress_log()
        self.expert = source.factory.expert_return(source.id)
        self.progress = EvaluationCallback(
            config.total_timesteps,
            evaluation_env,
            config.eval_freq,
            config.n_eval_episodes,
            self.expert,
            config.seed,
            self.log,
            progress_bar,
        )
        self.learner = _make_learner(config, model)
        self.checkpointing = Checkpointing(
            [self.progress] if self.learner is None else [self.learner, self.progress],
            as_list(user_callback),
            model=model,
            config=config,
            folder=folder,
            log=self.log,
            reports=self.progress.reports,
            parts={"stopwatch": self.stopwatch},
        )

    def train(self) -> None:
        """Train from the beginning, or from the last checkpoint."""
        if self.checkpointing.is_resuming and self.learner is not None:
            self.learner.offline_updates = 0  # they were made before the checkpoint, whose state restores their number
        train(
            self.model,
            self.config.total_timesteps,
            self.checkpointing,
            folder=self.folder,
            log=self.log,
            log_interval=1 if self.config.algo == "ppo" else 40,
        )

    def finish(self, env: EnvLike) -> FinetunedRun:
        """
        Write the agent, distill, evaluate, and draw.

        :param env: environment, for a video
        """
        config, model, folder = self.config, self.model, self.folder
        if folder is not None:
            folder.save_models(model, None)
        summary = self._summary()
        distilled = _distill(config, model)
        if distilled is not None:
            self.evaluation_env.seed(EVALUATION_SEED + config.seed)
            assert config.n_eval_episodes is not None
            evaluation = play(Predictor(distilled), self.evaluation_env, config.n_eval_episodes, expert=self.expert)
            figures = evaluation.summary()
            summary.update({f"distilled_{key}": figures[key] for key in ("mean_reward", "success_rate", "normalized_score")})
        summary["total_seconds"] = round(self.stopwatch.seconds, 2)
        if folder is not None:
            if distilled is not None:
                distilled.save(folder.path / POLICY)
            draw_or_warn(lambda: _draw(folder, config, self.progress), "The learning curve")
            if config.video:
                record: Callable[[], Any] = lambda: record_video(  # noqa: E731
                    model, folder.path / VIDEO, env, seed=config.seed, env_kwargs=config.env_kwargs
                )
                draw_or_warn(record, "The video")
            folder.write_summary(summary)
        return FinetunedRun(None if folder is None else folder.path, summary, model)

    def _summary(self) -> dict[str, Any]:
        config, model, progress, learner = self.config, self.model, self.progress, self.learner
        return {
            "command": "finetune",
            **{key: getattr(config, key) for key in _FACTS},
            "pretrained": None if config.pretrained is None else str(config.pretrained),
            **_explored_facts(config),
            "timesteps": model.num_timesteps,
            "seconds": round(progress.seconds, 2),
            "steps_per_second": round(model.num_timesteps / max(progress.seconds, 1e-9), 1),
            "n_updates": model._n_updates,
            "saw_reward": None if learner is None else learner.saw_reward,
            "first_update_timestep": None if learner is None else learner.first_update_timestep,
            **progress.figures,
            "torch_threads": th.get_num_threads(),
        }


def _make_learner(config: FinetuneConfig, model: BaseAlgorithm) -> DiffusionFinetuneCallback | GaussianFinetuneCallback | None:
    """The callback that trains the policy; None for PPO, which trains itself."""
    assert config.critic_updates is not None and config.kl_steps is not None
    if _has_diffusion_policy(config):
        assert config.warm_up is not None
        return DiffusionFinetuneCallback(
            config.operator or "sac",
            operator_kwargs=config.operator_kwargs,
            correlation=config.correlation,
            warm_up=config.warm_up,
            offline_updates=config.offline_updates,
            critic_updates=config.critic_updates,
            kl_steps=config.kl_steps,
        )
    if config.algo == "ppo":
        return None
    return GaussianFinetuneCallback(
        offline_updates=config.offline_updates,
        critic_updates=config.critic_updates,
        kl_steps=config.kl_steps,
        uniform=config.pretrained is None,
    )


def _explored_facts(config: FinetuneConfig) -> dict[str, Any]:
    explored = {} if config.pretrained is None else RunFolder(config.pretrained).config
    return {"pretrained_reward": explored.get("reward"), "pretrained_timesteps": explored.get("total_timesteps")}


def _distill(config: FinetuneConfig, model: BaseAlgorithm) -> DiffusionActor | None:
    """One diffusion policy that acts as the fine-tuned policy does."""
    if config.policy != "diffusion" or not isinstance(model.policy, DiffusionPolicy) or not config.distill_steps:
        return None
    if model.policy.action_selection == ActionSelection():  # the fine-tuned actor acts alone already
        return model.policy.actor
    return distill(model.policy, _buffer(model), config.distill_steps, seed=config.seed)


def _draw(folder: RunFolder, config: FinetuneConfig, progress: EvaluationCallback) -> None:
    has_success = progress.figures["success_rate"] is not None
    plot_learning_curve(
        [report["timesteps"] for report in progress.reports],
        np.array(progress.returns),
        folder.path / "learning_curve.png",
        success=[report["success_rate"] for report in progress.reports] if has_success else None,
        title=f"{config.env_id}, {config.operator or config.algo}",
    )
