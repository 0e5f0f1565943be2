"""Diffusion model of the actions given the observation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device, update_learning_rate
from torch import nn
from tqdm.auto import tqdm

from sb3_exdm.common.serialization import ArtifactError, load_tree, save_tree, space_from_json, space_to_json
from sb3_exdm.common.spaces import check_vector_spaces, scale_actions, unscale_actions
from sb3_exdm.common.validation import check_choice, check_integers
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.diffusion.solver import GRIDS
from sb3_exdm.policies.features import ObservationFeatures
from sb3_exdm.policies.networks import SquashedGaussian

NEEDS_CALLBACK = (
    "A DiffusionPolicy cannot be trained by the algorithm's own update: pass "
    "callback=sb3_exdm.DiffusionFinetuneCallback() to learn()."
)


class DiffusionActor(nn.Module):
    """
    Policy that samples actions by denoising (Diffusion Policies as an Expressive Policy Class, arXiv 2208.06193). It acts
    without a critic or other networks.

    :param observation_space: Box of vectors
    :param action_space: Box with finite bounds
    :param net_arch: widths of the hidden layers
    :param n_sampling_steps: network evaluations per action, usually 5 to 15
    :param grid: spacing of these steps, see :func:`~sb3_exdm.diffusion.solver.time_grid`
    :param frequencies: angular frequencies of the Fourier features of noisy actions
    :param n_frequencies: octaves of the Fourier features of observations, 0 to standardize them instead; by default chosen
        from the observation space, see :class:`~sb3_exdm.policies.features.ObservationFeatures`
    :param learning_rate: learning rate of Adam
    :param seed: seed of initialization, training noise and sampling; random by default
    :param device: PyTorch device
    :raises ValueError: for other spaces, or settings out of range
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        net_arch: Sequence[int] = (128, 128, 128),
        n_sampling_steps: int = 5,
        grid: str = "quadratic",
        frequencies: Sequence[float] = (0.5 * math.pi,),
        n_frequencies: int | None = None,
        learning_rate: float = 1e-3,
        seed: int | None = None,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__()
        check_vector_spaces(observation_space, action_space, type(self).__name__)
        check_integers(n_sampling_steps=(n_sampling_steps, 1), n_frequencies=(n_frequencies or 0, 0))
        check_choice("grid", grid, GRIDS)
        if not net_arch:
            raise ValueError("net_arch must have at least one hidden layer, got [].")
        assert isinstance(observation_space, spaces.Box) and isinstance(action_space, spaces.Box)
        self.observation_space = observation_space
        self.action_space = action_space
        self.device = get_device(device)
        self.features = ObservationFeatures(observation_space, n_frequencies).to(self.device)
        self.config: dict[str, Any] = {
            "net_arch": [int(width) for width in net_arch],
            "n_sampling_steps": int(n_sampling_steps),
            "grid": grid,
            "frequencies": [float(frequency) for frequency in frequencies],
            "n_frequencies": int(self.features.n_frequencies),
            "learning_rate": float(learning_rate),
        }
        self.model = DiffusionModel(
            spaces.flatdim(action_space),
            self.features.dim,
            net_arch=self.config["net_arch"],
            frequencies=self.config["frequencies"],
            learning_rate=learning_rate,
            ema_rate=0.995,
            seed=seed,
            device=self.device,
        )

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the diffusion model."""
        return self.model.optimizer

    def action_log_prob(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:raises RuntimeError: always, because the density of a denoised action is unknown"""
        raise RuntimeError(NEEDS_CALLBACK)

    forward = action_log_prob  # called by TD3

    @th.no_grad()
    def sample_actions(
        self,
        features: th.Tensor,
        n_actions: int,
        noise: th.Tensor | None = None,
        model: DiffusionModel | None = None,
    ) -> th.Tensor:
        """
        Sample several actions per state.

        :param features: features of the observations, ``(batch, features_dim)``
        :param n_actions: actions per state
        :param noise: start noise, ``(batch * n_actions, action_dim)``; drawn by default
        :param model: another diffusion model on the same features; the actor's own by default
        :return: actions in [-1, 1], ``(batch, n_actions, action_dim)``
        """
        repeated = features.repeat_interleave(n_actions, dim=0) if n_actions > 1 else features
        actions = (self.model if model is None else model).sample(
            len(repeated),
            repeated,
            n_sampling_steps=self.config["n_sampling_steps"],
            grid=self.config["grid"],
            noise=noise,
        )
        return actions.clamp(-1.0, 1.0).reshape(len(features), n_actions, -1)

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """
        Predict actions, as Stable-Baselines3's ``predict`` but without a state.

        :param observation: one observation, or a batch
        :param deterministic: whether the start noise is zero, so that the action depends on the observation alone
        :return: actions in the units of the environment
        """
        observation = np.asarray(observation)
        single = observation.shape == self.observation_space.shape
        batch = observation[None] if single else observation
        if batch.shape[1:] != self.observation_space.shape:
            raise ValueError(f"Expected observations of shape {self.observation_space.shape}, got {observation.shape}.")
        if not np.isfinite(batch).all():
            raise ValueError("The observation holds NaN or infinite values.")
        features = self.features(th.as_tensor(batch, device=self.device))
        noise = th.zeros(len(batch), self.model.dim, device=self.device) if deterministic else None
        actions = unscale_actions(self.sample_actions(features, 1, noise)[:, 0].cpu().numpy(), self.action_space)
        return actions[0] if single else actions

    def fit(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        gradient_steps: int = 3000,
        batch_size: int = 512,
        *,
        fit_features: bool = True,
        error_of: str = "noise",
        progress_bar: bool = False,
    ) -> dict[str, float]:
        """
        Fit the policy to recorded actions by behavior cloning (ExDM, arXiv 2502.07279, eq. 5), with a cosine schedule of the
        learning rate.

        :param observations: observations, ``(n, *shape)``
        :param actions: actions in the units of the environment, ``(n, *shape)``
        :param gradient_steps: gradient steps
        :param batch_size: batch size
        :param fit_features: whether to standardize with the moments of ``observations``; False keeps the present ones
        :param error_of: error to minimize, see :meth:`~sb3_exdm.diffusion.model.DiffusionModel.loss`; ``"data"`` for
            deterministic behavior
        :param progress_bar: show a progress bar on a terminal
        :return: ``policy_loss``, the mean denoising error of the last tenth of the steps
        :raises ValueError: if shapes do not fit or values are not finite
        """
        observations, actions = np.asarray(observations), np.asarray(actions)
        for name, array, space in (
            ("observations", observations, self.observation_space),
            ("actions", actions, self.action_space),
        ):
            if array.shape != (len(observations), *space.shape) or not len(array):
                raise ValueError(f"Expected {name} of shape (n, {', '.join(map(str, space.shape))}), got {array.shape}.")
            if not np.isfinite(array).all():
                raise ValueError(f"The {name} hold NaN or infinite values; remove these transitions.")
        if fit_features:
            self.features.fit(observations)
        with th.no_grad():
            chunks = th.as_tensor(observations).split(65_536)
            features = th.cat([self.features(chunk.to(self.device)) for chunk in chunks])
        targets = th.as_tensor(scale_actions(actions, self.action_space), device=self.device)
        losses = []
        for step in tqdm(range(gradient_steps), unit="step", disable=None if progress_bar else True, desc="policy"):
            update_learning_rate(self.optimizer, self.config["learning_rate"] * cosine_decay(step / gradient_steps))
            drawn = th.randint(len(targets), (batch_size,), generator=self.model.generator, device=self.device)
            loss = self.model.fit(targets[drawn], features[drawn], error_of=error_of)
            if step >= 0.9 * gradient_steps:
                losses.append(loss)
        update_learning_rate(self.optimizer, self.config["learning_rate"])
        return {"policy_loss": th.stack(losses).mean().item()} if losses else {}

    def save(self, path: str | Path, gaussian: SquashedGaussian | None = None, cloned: SquashedGaussian | None = None) -> None:
        """
        Save the policy to a safetensors file.

        :param path: file
        :param gaussian: Gaussian policy that explored, on the same features, to save with it
        :param cloned: Gaussian policy fitted to the explored transitions, on the same features, to save with it
        """
        tree = {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "config": self.config,
            "weights": dict(self.state_dict()),
            "training_state": self.model.training_state(),
            "gaussian": _gaussian_tree(gaussian),
            "cloned_gaussian": _gaussian_tree(cloned),
        }
        save_tree(path, tree, kind="diffusion policy")

    @classmethod
    def load(cls, path: str | Path, device: th.device | str = "auto") -> "DiffusionActor":
        """
        Load a policy.

        :param path: file that :meth:`save` wrote, or a run folder with one
        :param device: PyTorch device
        :raises ArtifactError: if the file cannot be used
        """
        return load_pretrained(path, device).actor


def _gaussian_tree(gaussian: SquashedGaussian | None) -> dict[str, Any] | None:
    return None if gaussian is None else {"net_arch": gaussian.net_arch, "weights": dict(gaussian.state_dict())}


POLICY = "policy.safetensors"
"""Name of the diffusion policy in a run folder."""


class PretrainedPolicies(NamedTuple):
    """
    Policies of an exploration, on the same features.

    :param actor: diffusion policy, fitted to the explored transitions
    :param gaussian: Gaussian policy that explored, as it was at the end; None where that policy is no squashed Gaussian
    :param cloned: Gaussian policy fitted to the explored transitions
    """

    actor: DiffusionActor
    gaussian: SquashedGaussian | None
    cloned: SquashedGaussian | None


def load_pretrained(path: str | Path, device: th.device | str = "auto") -> PretrainedPolicies:
    """
    Load the policies of an exploration.

    :param path: file that :meth:`DiffusionActor.save` wrote, or a run folder with one
    :param device: PyTorch device
    :raises ArtifactError: if the file cannot be used
    """
    path = Path(path)
    if path.is_dir():
        path = path / POLICY
        if not path.is_file():
            raise ArtifactError(
                f"{path.parent} holds no diffusion policy ({POLICY}): pre-train it with `exdm pretrain`, or fit one to its "
                f"transitions with `exdm clone {path.parent} --out {path}`."
            )
    tree = load_tree(path, kind="diffusion policy")
    actor = DiffusionActor(
        space_from_json(tree["observation_space"]),
        space_from_json(tree["action_space"]),
        **tree["config"],
        seed=0,
        device=get_device(device),
    )
    actor.load_state_dict(tree["weights"])
    actor.model.load_training_state(tree["training_state"])
    return PretrainedPolicies(actor, *(_load_gaussian(actor, tree.get(key)) for key in ("gaussian", "cloned_gaussian")))


def _load_gaussian(actor: DiffusionActor, tree: dict[str, Any] | None) -> SquashedGaussian | None:
    if tree is None:
        return None
    gaussian = SquashedGaussian(actor.features.dim, actor.model.dim, tree["net_arch"]).to(actor.device)
    gaussian.load_state_dict(tree["weights"])
    return gaussian


def cosine_decay(progress: float) -> float:
    """Decay from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
