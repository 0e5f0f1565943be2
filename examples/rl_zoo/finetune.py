"""
Fine-tuning of a diffusion policy under rl-zoo3, from scratch or from a run folder of ``exdm pretrain``.

python -m rl_zoo3.train --algo sac --env Maze2d-SquareA-v0 --gym-packages sb3_exdm --conf-file examples/rl_zoo/finetune.py \
    --hyperparams "policy_kwargs:dict(pretrained='runs/demo')"
"""

from sb3_exdm.runs.hyperparams import diffusion_hyperparams

N_ENVS = 8


def settings(profile: str, **env_kwargs) -> dict:
    """Hyper-parameters of ``exdm finetune``, as rl-zoo3 reads them."""
    return {
        "n_timesteps": 20_000,
        "n_envs": N_ENVS,
        "buffer_size": 20_000,
        "callback": [{"sb3_exdm.DiffusionFinetuneCallback": {"operator": "select"}}],
        "env_kwargs": env_kwargs,
        **diffusion_hyperparams(profile, N_ENVS),
    }


MAZES = ("SquareA", "SquareB", "SquareC", "SquareD", "SquareTree", "SquareBottleneck", "SquareLarge")
TASK = {"goal_cell": "farthest", "goal_radius": 0.5, "terminate_on_success": True}
hyperparams = {f"Maze2d-{maze}-v0": settings("low_dim", **TASK) for maze in MAZES}
hyperparams["MountainCarContinuous-v0"] = settings("low_dim")
