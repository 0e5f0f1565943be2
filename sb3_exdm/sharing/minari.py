"""Explored transitions as data sets of Minari. The way back is :func:`sb3_exdm.clone`."""

import json
import shutil
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.runs.envs import EnvSource
from sb3_exdm.runs.folder import RunFolder


def export_minari(run: str | Path, dataset_id: str, *, author: str | None = None, author_email: str | None = None) -> Path:
    """
    Write the explored transitions of a run as a local data set of Minari, in the folder ``MINARI_DATASETS_PATH``.

    An episode ends where it ended in the environment; the last ones, which the end of the run cut off, are truncated. The
    rewards are those of the environment, although the agent did not see them.

    :param run: run folder of ``exdm pretrain``
    :param dataset_id: new id, ``"(namespace/)name-vN"``, e.g. ``"maze2d/square-a-v0"``
    :param author: author, in the metadata
    :param author_email: address of the author, in the metadata
    :return: folder of the data set
    :raises ArtifactError: if the run has no transitions, or is damaged
    :raises ValueError: if the id is taken, or cannot be one
    :raises ImportError: if the extra ``minari`` is not installed
    """
    minari = _import_minari()
    folder = RunFolder(run)
    config, transitions = folder.config, folder.transitions()
    minari.dataset.minari_dataset.parse_dataset_id(dataset_id)  # an id that is none would break Minari's list
    if dataset_id in minari.list_local_datasets():
        raise ValueError(
            f"There is a local data set {dataset_id!r} already; choose another id, or minari delete {dataset_id}."
        )
    spec = _spec(config)
    episodes = [minari.data_collector.EpisodeBuffer(id=i, **episode) for i, episode in enumerate(_episodes(transitions))]
    description = (
        f"Transitions of a reward-free exploration of {config['env_id']} by sb3-exdm: {config['algo']}, intrinsic reward "
        f"{config['reward']}, seed {config['seed']}. Settings: {json.dumps(config)}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is not in the metadata, such as a link to the code
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                episodes,
                env=spec,
                algorithm_name=f"sb3-exdm {config['algo']} with the intrinsic reward {config['reward']}",
                author=author,
                author_email=author_email,
                description=description,
            )
    except BaseException:
        shutil.rmtree(minari.storage.get_dataset_path(dataset_id), ignore_errors=True)
        raise
    return Path(dataset.storage.data_path).parent


def _import_minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
        import minari.data_collector
        import minari.dataset.minari_dataset
        import minari.storage
    except ImportError as error:
        raise ImportError(
            f'Data sets of Minari need {error.name}, which is not installed: pip install "sb3-exdm[minari]".'
        ) from None
    return minari


def _spec(config: dict[str, Any]) -> EnvSpec:
    """Specification of the environment, with the arguments of the run."""
    try:
        EnvSource.of(config["env_id"])
    except ValueError as error:
        raise ArtifactError(f"The spaces of the data set are those of its environment, which is not known: {error}") from None
    spec = deepcopy(gym.spec(config["env_id"]))
    spec.kwargs.update(config.get("env_kwargs", {}))
    return spec


def _episodes(transitions: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Episodes of each environment, in the order of time, as arguments of Minari's buffer."""
    for env in np.unique(transitions["env_indices"]):
        rows = np.flatnonzero(transitions["env_indices"] == env)
        ends = np.flatnonzero(transitions["terminated"][rows] | transitions["truncated"][rows]) + 1
        for episode in np.split(rows, ends):
            if not len(episode):
                continue
            truncations = transitions["truncated"][episode].copy()
            truncations[-1] |= not transitions["terminated"][episode[-1]]
            last = transitions["next_observations"][episode[-1:]]
            yield {
                "observations": np.concatenate([transitions["observations"][episode], last]),
                "actions": transitions["actions"][episode],
                "rewards": transitions["rewards"][episode],
                "terminations": transitions["terminated"][episode],
                "truncations": truncations,
            }
