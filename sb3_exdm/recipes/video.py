"""Videos of agents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.resources import check_output
from sb3_exdm.common.serialization import atomic_path
from sb3_exdm.common.validation import Seed, check_integers, check_value
from sb3_exdm.recipes.evaluation import Agent, open_agent
from sb3_exdm.runs.envs import EnvLike

SUFFIXES = (".mp4", ".gif")


def record_video(
    agent: Agent,
    path: str | Path,
    env: EnvLike | None = None,
    n_episodes: int = 1,
    *,
    seed: int = 0,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """
    Record a video of an agent.

    :param agent: run folder, file of a diffusion policy, or an agent in memory
    :param path: video to write, ``.mp4`` or ``.gif``
    :param env: id, spec, environment class, or function that returns an environment; by default that of the run folder
    :param n_episodes: number of episodes
    :param seed: seed of the environment
    :param deterministic: whether the agent acts deterministically
    :param env_kwargs: arguments of the environment, by default those of the run folder
    :param device: PyTorch device
    :return: ``path``
    :raises ValueError: for arguments out of range, or an environment that cannot be rendered
    :raises ImportError: if the extra ``video`` is not installed, or there is no OpenGL that the environment needs
    :raises ArtifactError: if the folder or file cannot be used
    """
    check_integers(n_episodes=(n_episodes, 1))
    check_value("seed", seed, Seed)
    path = check_video(path)
    player, source, vec_env = open_agent(agent, env, 1, seed, env_kwargs, device, render_mode="rgb_array")
    try:
        frames_per_second = vec_env.get_attr("metadata")[0].get("render_fps", 30)
        _write(path, _frames(player, vec_env, source.id, n_episodes, deterministic), frames_per_second)
    finally:
        vec_env.close()
    return path


def check_video(path: str | Path) -> Path:
    """
    Check that a video can be written.

    :param path: file of the video
    :raises ValueError: for an unsupported file format
    :raises ImportError: if the extra ``video`` is not installed
    """
    path = check_output(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"A video ends in {' or '.join(SUFFIXES)}, got {path}.")
    try:
        import imageio.v2  # noqa: F401
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Writing videos needs {error.name}, which is not installed: pip install "sb3-exdm[video]".'
        ) from None
    return path


def _frames(player: PolicyPredictor, env: VecEnv, env_id: str, n_episodes: int, deterministic: bool) -> Iterator[np.ndarray]:
    """Images before every step, uint8 ``(height, width, 3)``."""
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
    observations: Any = env.reset()
    state = None
    while n_episodes:
        picture = env.get_images()[0]
        if picture is None:
            raise ValueError(f"{env_id} cannot be rendered: it returned no image.")
        yield picture
        actions, state = player.predict(observations, state=state, deterministic=deterministic)
        observations, _, dones, _ = env.step(actions)
        n_episodes -= int(dones[0])


def _write(path: Path, frames: Iterator[np.ndarray], frames_per_second: float) -> None:
    import imageio.v2 as imageio

    writer: Any
    settings: dict[str, Any] = {"fps": frames_per_second, "macro_block_size": 2}
    if path.suffix == ".gif":
        settings = {"duration": 1000.0 / frames_per_second, "loop": 0}
    with atomic_path(path) as temporary, imageio.get_writer(temporary, **settings) as writer:
        for frame in frames:
            height, width = (2 * (size // 2) for size in frame.shape[:2])  # what H.264 can encode
            writer.append_data(frame[:height, :width])
