"""Base class and registry of the policy improvement operators."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import torch as th

from sb3_exdm.common.registry import Registry
from sb3_exdm.common.validation import Fraction, LearningRate, check_kwargs
from sb3_exdm.finetuning.critics import Batch
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy

OPERATORS: "Registry[type[Operator]]" = Registry("operator")
"""Policy improvement operators, by name; the first is the default."""

OperatorClass = TypeVar("OperatorClass", bound="type[Operator]")


def register_operator(name: str) -> Callable[[OperatorClass], OperatorClass]:
    """
    Register a subclass of :class:`Operator`, as a decorator.

    :param name: name for ``operator=`` and the command line
    :raises ValueError: if the name is taken
    """
    return OPERATORS.register(name)  # type: ignore[return-value]


def make_operator(name: str, policy: DiffusionPolicy, **kwargs: Any) -> "Operator":
    """
    Make an operator by name.

    :param name: a name in :data:`OPERATORS`
    :param policy: policy to improve
    :param kwargs: arguments of the operator
    :raises ValueError: for an unknown name, or an argument that does not exist or has the wrong type
    """
    operator_class = OPERATORS[name]
    check_kwargs(operator_class, kwargs, "operator_kwargs", ignore=("policy",))
    return operator_class(policy, **kwargs)


class OperatorPart(Protocol):
    """Part of an operator that is trained and saved."""

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """Optimizer, whose learning rate follows the algorithm's schedule."""

    def training_state(self) -> dict[str, Any]:
        """Return the weights that are not part of the policy, and the state of the optimizer."""

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""


class Operator:
    """
    Policy improvement operator of a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy`.

    A subclass implements :meth:`learn`, and sets ``action_selection`` (how the policy acts), ``n_cached_actions`` (cached
    actions of the pre-trained policy per observation, 0 for none) and ``parts``. Networks that act belong to the policy. Those
    that are only needed for training, such as a state value, belong to the operator and are saved as its ``parts``, by name.

    :param policy: policy to improve
    :param tau: Polyak coefficient of the target critics
    :param learning_rate: learning rate of the parts
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection()
    exploring_actor: ClassVar[str] = "policy"
    """Actor that collects transitions after the warm-up, see
    :class:`~sb3_exdm.policies.diffusion_policy.ExplorationState`."""
    kl_coef: float = 0.0
    """Coefficient of the KL regularization towards the pre-trained Gaussian; used by operators with ``has_kl``."""
    has_kl: ClassVar[bool] = False
    n_cached_actions: int = 0
    needs_next_cached_actions: bool = False

    def __init__(self, policy: DiffusionPolicy, *, tau: Fraction = 0.005, learning_rate: LearningRate = 1e-3) -> None:
        self.policy = policy
        self.tau = tau
        self.learning_rate = learning_rate
        self._critic_weights: list[th.Tensor] = list(policy.critic.parameters())
        self._target_weights: list[th.Tensor] = list(policy.critic_target.parameters())
        self.parts: dict[str, OperatorPart] = {}

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        """
        Update everything once.

        :param batch: transitions
        :return: losses and other scalars for the log
        """
        raise NotImplementedError

    def learn_critic(self, batch: Batch) -> dict[str, th.Tensor]:
        """
        Update the critic once and leave the policy as it is; everything for operators without such an update.

        :param batch: transitions
        :return: losses and other scalars for the log
        """
        return self.learn(batch)

    def update_critic(self, batch: Batch, next_values: th.Tensor) -> th.Tensor:
        """
        Take one step of Adam on the squared error of all critics, then one Polyak update of the target critics.

        :param batch: transitions
        :param next_values: values of the next states, ``(batch,)``
        :return: loss, a scalar
        """
        targets = batch.rewards + batch.discounts * next_values  # (batch,)
        values = self.policy.critic(batch.features, batch.actions)  # (n_critics, batch)
        loss = 0.5 * (values - targets).square().mean(dim=1).sum()
        optimizer = self.policy.critic.optimizer
        assert optimizer is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with th.no_grad():
            th._foreach_lerp_(self._target_weights, self._critic_weights, self.tau)
        return loss.detach()

    def optimizers(self) -> list[th.optim.Optimizer]:
        """Return all optimizers in use, those of the policy included."""
        critic_optimizer = self.policy.critic.optimizer
        assert critic_optimizer is not None
        return [critic_optimizer, self.policy.actor.optimizer, *(part.optimizer for part in self.parts.values())]

    def training_state(self) -> dict[str, Any]:
        """Return the states of all parts."""
        return {name: part.training_state() for name, part in self.parts.items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        for name, part in self.parts.items():
            part.load_training_state(state[name])
