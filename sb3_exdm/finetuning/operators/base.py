"""What every policy improvement operator is."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.finetuning.critics import Batch, CriticLearner
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


class Operator:
    """
    Improves a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy` with minibatches of transitions.

    A subclass says how the policy acts (``acting``), what it needs beside transitions (``n_candidates`` cached actions of the
    pre-trained policy, per state), and what one update does (:meth:`learn`). Networks that act belong to the policy; what is
    only needed to train, such as a temperature, belongs to the operator and is listed by :meth:`parts`.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: of the optimizers that the operator makes
    """

    acting: ClassVar[ActionSelection] = ActionSelection()
    n_candidates: ClassVar[int] = 0
    needs_next_candidates: bool = False

    def __init__(self, policy: DiffusionPolicy, *, tau: float = 0.005, learning_rate: float = 1e-3) -> None:
        self.policy = policy
        self.critic = CriticLearner(policy, tau)

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        """
        One update of everything.

        :param batch: transitions
        :return: losses and other scalars for the log
        """
        raise NotImplementedError

    def learn_critic(self, batch: Batch) -> dict[str, th.Tensor]:
        """
        One update of what values the policy, without a change to how it acts; of everything where an operator cannot tell the
        two apart.

        :param batch: transitions
        :return: losses and other scalars for the log
        """
        return self.learn(batch)

    def parts(self) -> dict[str, Any]:
        """What has a state that must be saved: objects with ``training_state`` and ``load_training_state``, by name."""
        return {}

    def optimizers(self) -> list[th.optim.Optimizer]:
        """All optimizers in use, those of the policy included."""
        own = [part.optimizer for part in self.parts().values()]
        critic_optimizer = self.policy.critic.optimizer
        assert critic_optimizer is not None
        return [critic_optimizer, self.policy.actor.optimizer, *own]

    def training_state(self) -> dict[str, Any]:
        """States of all parts."""
        return {name: part.training_state() for name, part in self.parts().items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`training_state`"""
        for name, part in self.parts().items():
            part.load_training_state(state[name])
