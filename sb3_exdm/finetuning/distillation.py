"""Distillation of a fine-tuned policy into a single diffusion policy."""

import numpy as np

from sb3_exdm.common.spaces import unscale_actions
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.policies.diffusion_actor import DiffusionActor
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy

CHUNK_SIZE = 1000
"""States that are labeled together."""


def distill(
    policy: DiffusionPolicy,
    buffer: FinetuneReplayBuffer,
    gradient_steps: int = 4000,
    batch_size: int = 512,
    *,
    n_states: int = 20_000,
    seed: int = 0,
) -> DiffusionActor:
    """
    Distill a fine-tuned policy, with its critic and its Gaussian, into a diffusion policy that acts alone. The cached actions
    of the buffer are removed.

    :param policy: fine-tuned policy
    :param buffer: its replay buffer; states near a success are oversampled as in training
    :param gradient_steps: gradient steps
    :param batch_size: batch size
    :param n_states: number of states to imitate the policy in
    :param seed: seed of initialization and training
    :return: diffusion policy, which can be saved, evaluated, and fine-tuned further
    """
    actor = DiffusionActor(
        policy.observation_space,
        policy.action_space,
        **{**policy.actor.config, "learning_rate": 3e-3},
        seed=seed,
        device=policy.device,
    )
    actor.features.load_state_dict(policy.actor.features.state_dict())
    observations, actions = [], []
    buffer.clear_cached_actions()
    for _ in range(max(n_states // CHUNK_SIZE, 1)):
        states = buffer.sample(CHUNK_SIZE).observations
        observations.append(states.cpu().numpy())
        actions.append(policy.act(policy.features(states), deterministic=True).cpu().numpy())
    actor.fit(
        np.concatenate(observations),
        unscale_actions(np.concatenate(actions), actor.action_space),
        gradient_steps,
        batch_size,
        fit_features=False,
        error_of="data",
    )
    return actor
