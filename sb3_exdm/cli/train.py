"""``exdm pretrain``, ``exdm finetune`` and ``exdm clone``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.flags import ALGO_NAMES, OPERATOR_NAMES, REWARD_NAMES, check_positive, file_name, json_object
from sb3_exdm.cli.look import describe


@dataclass
class Pretrain:
    """
    Explore an environment without its reward.

    Trains an agent that is paid for reaching states it has rarely visited, fits a diffusion policy to what it did, and writes
    a run folder: the agent, its model of novelty and the policy (safetensors), the explored transitions, progress.csv,
    summary.json, TensorBoard logs and pictures.

    Example: exdm pretrain --env Maze2d-SquareA-v0 --steps 100000 --seed 0 --out runs/demo
    """

    env: Annotated[str, arg(metavar="ID")]
    """Id of a Gymnasium environment, e.g. Maze2d-SquareLarge-v0 or Pendulum-v1. "module:ID" imports the module first."""
    steps: Annotated[int, arg(metavar="N")] = 100_000
    """Environment steps, over all environments together."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of everything."""
    algo: Annotated[str, arg(metavar=f"{{{ALGO_NAMES}}}")] = "sac"
    """Reinforcement learning algorithm. ppo for actions that are not continuous."""
    reward: Annotated[str, arg(metavar=f"{{{REWARD_NAMES}}}")] = "score"
    """Intrinsic reward: ExDM's denoising error (score), EDP's of the action (edp), or one to compare with."""
    n_envs: Annotated[int, arg(metavar="N")] = 8
    """Environments that are stepped together."""
    vec_env: Annotated[str, arg(metavar="{auto,dummy,subproc}")] = "auto"
    """How: the fastest way in one process, one after another, or each in a process of its own."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/<env>-<algo>-<reward>-<seed>)")] = (
        None
    )
    """Run folder to write."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    coverage_dims: Annotated[tuple[int, ...] | None, arg(metavar="D [D ...]", help_behavior_hint="(default: 0 1)")] = None
    """Dimensions of the observation whose visited bins are counted, where the environment is no maze. Bodies of URLB have
    a default of their own."""
    env_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the environment, e.g. '{"g": 9.81}'."""
    algo_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Changes to the settings of the algorithm, e.g. '{"learning_rate": 0.001}'."""
    reward_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the reward, e.g. '{"n_levels": 2}'."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch. Networks as small as the default ones are fastest with one, by far if the machine is busy."""
    checkpoint_freq: Annotated[int, arg(metavar="N")] = 25_000
    """Steps between two checkpoints in the run folder, 0 for none."""
    policy_steps: Annotated[int, arg(metavar="N")] = 3000
    """Gradient steps that fit a diffusion policy to what was explored, 0 for no such policy."""
    quiet: bool = False
    """No progress bar, no report; errors are still printed."""

    def run(self) -> None:
        """Train and report."""
        check_positive(steps=self.steps, threads=self.threads)
        env_kwargs = json_object(self.env_kwargs, "env_kwargs")
        algo_kwargs = json_object(self.algo_kwargs, "algo_kwargs")
        reward_kwargs = json_object(self.reward_kwargs, "reward_kwargs")
        import torch as th

        from sb3_exdm.recipes import pretrain

        th.set_num_threads(self.threads)
        run = pretrain(
            self.env,
            self.steps,
            algo=self.algo,
            reward=self.reward,
            seed=self.seed,
            n_envs=self.n_envs,
            vec_env=self.vec_env,
            out=self.out or Path("runs") / file_name(self.env, self.algo, self.reward, self.seed),
            coverage_dims=self.coverage_dims,
            overwrite=self.overwrite,
            env_kwargs=env_kwargs,
            algo_kwargs=algo_kwargs,
            reward_kwargs=reward_kwargs,
            device=self.device,
            checkpoint_freq=self.checkpoint_freq,
            policy_steps=self.policy_steps,
            progress_bar=not self.quiet,
        )
        if not self.quiet:
            print(describe(run))


@dataclass
class Finetune:
    """
    Adapt a pre-trained agent to the reward of an environment, or train from scratch.

    Evaluates as it goes, and writes a run folder: the agent (safetensors), progress.csv, summary.json, TensorBoard logs and
    the learning curve.

    Example: exdm finetune --pretrained runs/demo --env-kwargs '{"goal_cell": "farthest"}' --out runs/adapted
    """

    env: Annotated[str | None, arg(metavar="ID", help_behavior_hint="(default: that of the pre-training)")] = None
    """Id of a Gymnasium environment."""
    steps: Annotated[int, arg(metavar="N")] = 20_000
    """Environment steps, over all environments together."""
    pretrained: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: train from scratch)")] = None
    """Run folder that exdm pretrain wrote."""
    policy: Annotated[str, arg(metavar="{diffusion,gaussian}")] = "diffusion"
    """The diffusion policy, or the agent that explored with the algorithm that trained it."""
    operator: Annotated[str, arg(metavar=f"{{{OPERATOR_NAMES}}}")] = "select"
    """How the diffusion policy is improved."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of everything."""
    n_envs: Annotated[int, arg(metavar="N")] = 8
    """Environments that are stepped together."""
    vec_env: Annotated[str, arg(metavar="{auto,dummy,subproc}")] = "auto"
    """How: the fastest way in one process, one after another, or each in a process of its own."""
    reuse_data: bool = False
    """Begin with the transitions of the pre-training, worth what the environment says."""
    out: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help_behavior_hint="(default: runs/<env>-<policy>-<operator or algo>-<pretrained, reuse or scratch>-<seed>)",
        ),
    ] = None
    """Run folder to write."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    env_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the environment, e.g. '{"goal_cell": "farthest"}'."""
    algo_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Changes to the settings of the algorithm, e.g. '{"learning_rate": 0.001}'."""
    operator_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the operator, e.g. '{"ent_coef": 0.02}'."""
    offline_updates: Annotated[int, arg(metavar="N")] = 5000
    """Updates on reused data before the first step."""
    critic_updates: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 0 for small bounded observations, else 2000)")
    ] = None
    """Updates of the critic alone, when learning begins."""
    kl_steps: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 0 for small bounded observations, else 16000)")
    ] = None
    """Steps over which a pre-trained Gaussian is held near what it was, and let go, from the beginning of learning."""
    distill_steps: Annotated[int, arg(metavar="N")] = 4000
    """Gradient steps that distill what was fine-tuned into a single diffusion policy, policy.safetensors; 0 for none."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch. Networks as small as the default ones are fastest with one, by far if the machine is busy."""
    eval_freq: Annotated[int, arg(metavar="N")] = 2500
    """Steps between two evaluations; one is made before the first step and one at the end."""
    n_eval_episodes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50, or 10 if they are long)")] = None
    """Episodes of an evaluation."""
    video: bool = False
    """Film an episode at the end: video.mp4 in the run folder."""
    quiet: bool = False
    """No progress bar, no report; errors are still printed."""

    def run(self) -> None:
        """Train and report."""
        check_positive(steps=self.steps, threads=self.threads)
        env_kwargs = json_object(self.env_kwargs, "env_kwargs")
        algo_kwargs = json_object(self.algo_kwargs, "algo_kwargs")
        operator_kwargs = json_object(self.operator_kwargs, "operator_kwargs")
        import torch as th

        from sb3_exdm.recipes import finetune

        th.set_num_threads(self.threads)
        run = finetune(
            self.env,
            self.steps,
            pretrained=self.pretrained,
            policy=self.policy,
            operator=self.operator,
            seed=self.seed,
            n_envs=self.n_envs,
            vec_env=self.vec_env,
            reuse_data=self.reuse_data,
            out=self.out or self._default_out(),
            overwrite=self.overwrite,
            env_kwargs=env_kwargs,
            algo_kwargs=algo_kwargs,
            operator_kwargs=operator_kwargs,
            offline_updates=self.offline_updates,
            critic_updates=self.critic_updates,
            kl_steps=self.kl_steps,
            distill_steps=self.distill_steps,
            device=self.device,
            eval_freq=self.eval_freq,
            n_eval_episodes=self.n_eval_episodes,
            video=self.video,
            progress_bar=not self.quiet,
        )
        if not self.quiet:
            print(describe(run))

    def _default_out(self) -> Path:
        from sb3_exdm.runs.folder import RunFolder

        config = {} if self.pretrained is None else RunFolder(self.pretrained).config
        how = self.operator if self.policy == "diffusion" else config.get("algo", "sac")
        # From where it starts is part of the name, so that runs that are compared do not replace each other.
        start = "scratch" if self.pretrained is None else "reuse" if self.reuse_data else "pretrained"
        # Without either of the two there is no environment, and the recipe says so.
        return Path("runs") / file_name(self.env or config.get("env_id", ""), self.policy, how, start, self.seed)


@dataclass
class Clone:
    """
    Fit a diffusion policy to recorded behavior. SAC("DiffusionPolicy", env, policy_kwargs=dict(pretrained=...)) starts from
    it; so does exdm finetune --pretrained if it is in a run folder.

    Example: exdm clone runs/demo --out runs/demo
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """Run folder with transitions, replay buffer saved by Stable-Baselines3 (.pkl, which executes code when it is read: only
    open files that you trust), or id of a local Minari dataset."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File (.safetensors) or folder to write the policy to."""
    steps: Annotated[int, arg(metavar="N")] = 3000
    """Gradient steps."""
    batch_size: Annotated[int, arg(metavar="N")] = 512
    """Transitions of a minibatch."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of everything."""
    policy_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the policy, e.g. '{"net_arch": [256, 256], "n_sampling_steps": 10}'."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch."""
    quiet: bool = False
    """No progress bar, no report; errors are still printed."""

    def run(self) -> None:
        """Fit, and say what was written."""
        check_positive(steps=self.steps, threads=self.threads)
        policy_kwargs = json_object(self.policy_kwargs, "policy_kwargs")
        import torch as th

        from sb3_exdm.recipes import clone

        th.set_num_threads(self.threads)
        clone(
            self.source,
            self.out,
            gradient_steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            progress_bar=not self.quiet,
            policy_kwargs=policy_kwargs,
        )
        if not self.quiet:
            print(f"diffusion policy: {self.out}")
