"""One diffusion policy out of everything that took part in fine-tuning."""

import numpy as np

from sb3_exdm.common.spaces import unscale_actions
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.policies.diffusion_actor import DiffusionActor
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy

CHUNK = 1000
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
    Fit a diffusion policy to what a fine-tuned policy does in the states of its replay buffer. The result needs no critic and
    no Gaussian to act, and can be saved, evaluated, and pre-train another policy.

    :param policy: the fine-tuned policy
    :param buffer: its replay buffer; states shortly before a success are favored as in training
    :param gradient_steps: steps of Adam
    :param batch_size: rows of a minibatch
    :param n_states: states to imitate in
    :param seed: seed of everything
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
    buffer.drop_candidates()  # they are of no use here
    for _ in range(max(n_states // CHUNK, 1)):
        states = buffer.sample(CHUNK).observations
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
