"""Behavior cloning: a diffusion policy, and a Gaussian policy beside it, from recorded transitions."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.utils import update_learning_rate
from torch import nn

from sb3_exdm.common.resources import check_output, resolve_device
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.common.spaces import check_vector_spaces, scale_actions, unscale_actions
from sb3_exdm.common.validation import check_kwargs
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor, PretrainedPolicies, cosine_decay
from sb3_exdm.policies.networks import SquashedGaussian
from sb3_exdm.runs.config import CloneConfig
from sb3_exdm.runs.folder import RunFolder

_SPACES = ("observation_space", "action_space", "seed", "device")


def clone(
    source: str | Path | ReplayBuffer,
    out: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    device: str = "auto",
    progress_bar: bool = True,
    **settings: Any,
) -> DiffusionActor:
    """
    Fit a diffusion policy to recorded observations and actions. ``policy_kwargs=dict(pretrained=out)`` then starts from it.

    :param source: run folder with transitions; replay buffer of Stable-Baselines3, or the file that ``save_replay_buffer``
        wrote; or id of a local Minari dataset
    :param out: file or folder to write; None writes nothing
    :param allow_pickle: read such a file. It is a pickle, which executes code: only for files that you trust
    :param device: PyTorch device
    :param progress_bar: show a progress bar on a terminal
    :param settings: fields of :class:`~sb3_exdm.runs.config.CloneConfig`: ``gradient_steps``, ``batch_size``, ``seed``,
        ``policy_kwargs``
    :raises ValueError: for an unknown setting, a value out of range, or data that cannot be used
    :raises ArtifactError: if the source cannot be read
    """
    config = CloneConfig.make(**settings)
    resolve_device(device)
    if out is not None:
        out = check_output(out)
        out = out if out.suffix == ".safetensors" else out / POLICY
    check_kwargs(DiffusionActor, config.policy_kwargs, "policy_kwargs", ignore=_SPACES)
    gaussian, cloned = None, None
    if isinstance(source, (str, Path)) and RunFolder(source).exists():
        folder = RunFolder(source)
        actor, gaussian, cloned = clone_agent(
            folder.load_model(device=device),
            folder.transitions(),
            config.gradient_steps,
            config.batch_size,
            config.seed,
            progress_bar,
            config.policy_kwargs,
            moments=folder.observation_moments(),
        )
    else:
        observation_space, action_space, observations, actions = _read(source, allow_pickle)
        actor = DiffusionActor(observation_space, action_space, seed=config.seed, device=device, **config.policy_kwargs)
        actor.fit(observations, actions, config.gradient_steps, config.batch_size, progress_bar=progress_bar)
    if out is not None:
        actor.save(out, gaussian, cloned)
    return actor


def can_clone(observation_space: spaces.Space, action_space: spaces.Space) -> bool:
    """
    Tell whether a diffusion policy can be fitted: vectors on both sides, and actions with finite bounds.

    :param observation_space: observations of the environment
    :param action_space: actions of the environment
    """
    try:
        check_vector_spaces(observation_space, action_space, "")
    except ValueError:
        return False
    return True


def clone_agent(
    model: BaseAlgorithm,
    transitions: dict[str, np.ndarray],
    gradient_steps: int,
    batch_size: int = 512,
    seed: int = 0,
    progress_bar: bool = False,
    policy_kwargs: dict[str, Any] | None = None,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> PretrainedPolicies:
    """
    Fit a diffusion policy and a Gaussian policy to an agent's transitions, on the features that the agent itself uses.

    :param model: agent
    :param transitions: ``observations`` and ``actions`` in the units of the environment
    :param gradient_steps: steps of Adam
    :param batch_size: transitions of a minibatch
    :param seed: seed of everything
    :param progress_bar: show a progress bar on a terminal
    :param policy_kwargs: arguments of :class:`~sb3_exdm.policies.diffusion_actor.DiffusionActor`
    :param moments: mean and variance that the agent's observations were standardized with; by default those of its environment
    :return: diffusion policy, the agent's Gaussian policy if it can be saved beside it (see :func:`explorer_gaussian`), and
        the fitted Gaussian policy
    """
    actor = DiffusionActor(
        model.observation_space, model.action_space, seed=seed, device=model.device, **(policy_kwargs or {})
    )
    env = model.get_vec_normalize_env()
    if moments is None and env is not None and env.norm_obs and isinstance(env.obs_rms, RunningMeanStd):
        moments = env.obs_rms.mean, env.obs_rms.var
    gaussian = explorer_gaussian(model, actor)
    if moments is not None:
        mean, variance = (moment.reshape(-1) for moment in moments)
        actor.features.mean.copy_(th.as_tensor(mean))
        actor.features.std.copy_(th.as_tensor(np.sqrt(variance + 1e-8)))  # as VecNormalize does
    actor.fit(
        transitions["observations"],
        transitions["actions"],
        gradient_steps,
        batch_size,
        # The Gaussian was trained on features with the agent's own standardization, or with none.
        fit_features=gaussian is None and moments is None,
        progress_bar=progress_bar,
    )
    cloned = SquashedGaussian(
        actor.features.dim, actor.model.dim, gaussian.net_arch if gaussian is not None else actor.config["net_arch"][:2]
    ).to(actor.device)
    fit_gaussian(cloned, actor, transitions["observations"], transitions["actions"], gradient_steps, batch_size, seed)
    return PretrainedPolicies(actor, gaussian, cloned)


LARGEST_ACTION = 0.995
"""Actions are clipped to plus and minus this before the hyperbolic tangent is inverted."""


def fit_gaussian(
    gaussian: SquashedGaussian,
    actor: DiffusionActor,
    observations: np.ndarray,
    actions: np.ndarray,
    gradient_steps: int = 3000,
    batch_size: int = 512,
    seed: int = 0,
) -> float:
    """
    Fit a Gaussian policy to recorded actions by maximum likelihood, with a cosine schedule of the learning rate.

    :param gaussian: policy to fit, from new weights
    :param actor: diffusion policy with the same features
    :param observations: observations, ``(n, *shape)``
    :param actions: actions in the units of the environment, ``(n, *shape)``
    :param gradient_steps: steps of Adam
    :param batch_size: transitions of a minibatch
    :param seed: seed of weights and minibatches
    :return: negative log-likelihood before squashing in the last tenth of the steps, in nats; 0 without steps
    """
    generator = th.Generator(device=actor.device).manual_seed(seed)
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        for layer in gaussian.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    with th.no_grad():
        chunks = th.as_tensor(observations).split(65_536)
        features = th.cat([actor.features(chunk.to(actor.device)) for chunk in chunks])
    scaled = th.as_tensor(scale_actions(actions, actor.action_space), device=actor.device)
    raw = scaled.clamp(-LARGEST_ACTION, LARGEST_ACTION).atanh()
    optimizer = th.optim.Adam(gaussian.parameters(), lr=1e-3, fused=True)
    losses = []
    for step in range(gradient_steps):
        update_learning_rate(optimizer, 1e-3 * cosine_decay(step / gradient_steps))
        drawn = th.randint(len(raw), (batch_size,), generator=generator, device=actor.device)
        loss = -gaussian.log_prob(features[drawn], raw[drawn]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 0.9 * gradient_steps:
            losses.append(loss.detach())
    return th.stack(losses).mean().item() if losses else 0.0


def explorer_gaussian(model: BaseAlgorithm, actor: DiffusionActor) -> SquashedGaussian | None:
    """
    Copy the Gaussian policy of an agent for use beside a diffusion policy; warns if that is not possible.

    :param model: agent
    :param actor: diffusion policy with the same features
    :return: None unless the agent is SAC with ReLU networks on the features of ``actor``
    """
    reason = f"{type(model).__name__} has no squashed Gaussian policy"
    if isinstance(model, SAC):
        reason = "its actor is not a ReLU network with hidden layers"
        if model.actor.activation_fn is nn.ReLU and model.actor.net_arch:
            gaussian = SquashedGaussian(actor.features.dim, actor.model.dim, model.actor.net_arch).to(model.device)
            weights, own = model.actor.state_dict(), gaussian.state_dict()
            if all(key in weights and weights[key].shape == value.shape for key, value in own.items()):
                gaussian.load_state_dict({key: weights[key] for key in own})
                return gaussian
            reason = "its features differ from those of the diffusion policy"
    warnings.warn(
        f"The explorer's Gaussian policy is not saved beside the diffusion policy, because {reason}. Fine-tuning with the "
        "operator 'select' starts from a new Gaussian; exdm finetune --policy gaussian still starts from the explorer.",
        UserWarning,
        stacklevel=2,
    )
    return None


_FORMATS = {
    b"PK": "a zip archive, such as transitions.npz",
    b"\x93NUMPY": "an array of numpy",
    b"\x89HDF": "an HDF5 file",
    b"{": "JSON",
}
"""Formats by their first bytes. Reading looks at the content of a file: its name may say anything."""


def _read(source: str | Path | ReplayBuffer, allow_pickle: bool) -> tuple[spaces.Space, spaces.Space, np.ndarray, np.ndarray]:
    """Spaces, observations and actions in the units of the environment."""
    if isinstance(source, ReplayBuffer):
        return _from_buffer(source)
    path = Path(source)
    if path.is_file():
        _check_format(path, allow_pickle)
        try:
            buffer = load_from_pkl(path)
        except Exception as error:  # pickle raises many kinds for a file that is something else
            raise ArtifactError(f"{path} is not a saved replay buffer: {error}") from None
        if not isinstance(buffer, ReplayBuffer):
            raise ArtifactError(f"{path} holds {type(buffer).__name__}, expected a replay buffer of Stable-Baselines3.")
        return _from_buffer(buffer)
    return _from_minari(str(source))


def _check_format(path: Path, allow_pickle: bool) -> None:
    """Refuse files that hold no replay buffer, and pickles unless they are allowed."""
    with path.open("rb") as file:
        start = file.read(16)
    named = next((kind for first, kind in _FORMATS.items() if start.startswith(first)), None)
    if start[8:9] == b"{":  # after the length of its header
        named = "a safetensors file, which holds models"
    if not start:
        named = "an empty file"
    if named is not None:
        raise ArtifactError(f"{path} is not a saved replay buffer, but {named}; to clone a run, name its folder.")
    if not allow_pickle:
        raise ArtifactError(
            f"{path} could be a replay buffer saved by Stable-Baselines3, which is a pickle: reading it executes code. If you "
            "trust the file, add --allow-pickle (allow_pickle=True in Python)."
        )


def _from_buffer(buffer: ReplayBuffer) -> tuple[spaces.Space, spaces.Space, np.ndarray, np.ndarray]:
    if isinstance(buffer, DictReplayBuffer) or not isinstance(buffer.action_space, spaces.Box):
        raise ValueError(f"A diffusion policy needs Box spaces, got {buffer.observation_space} and {buffer.action_space}.")
    size = buffer.size()
    if not size:
        raise ValueError("The replay buffer is empty.")
    observations = buffer.observations[:size].reshape(-1, *buffer.obs_shape)
    actions = buffer.actions[:size].reshape(-1, buffer.action_dim)  # in [-1, 1], as all off-policy algorithms store them
    return buffer.observation_space, buffer.action_space, observations, unscale_actions(actions, buffer.action_space)


def _from_minari(dataset_id: str) -> tuple[spaces.Space, spaces.Space, np.ndarray, np.ndarray]:
    try:
        import minari
    except ImportError:
        raise ArtifactError(
            f"{dataset_id} is neither a run folder nor a file. For the id of a Minari dataset: pip install 'minari[hdf5]'."
        ) from None
    try:
        dataset = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise ArtifactError(f"{dataset_id} is neither a run folder, a file nor a local Minari dataset: {error}") from None
    except ImportError as error:  # of what reads the format of the dataset
        raise ArtifactError(f"The Minari dataset {dataset_id} cannot be read: {error}") from None
    if not isinstance(dataset.observation_space, spaces.Box):
        raise ValueError(f"A diffusion policy needs Box observations, the dataset has {dataset.observation_space}.")
    # An episode has one observation more than actions.
    observations = np.concatenate([episode.observations[:-1] for episode in dataset.iterate_episodes()])
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    return dataset.observation_space, dataset.action_space, observations, actions
