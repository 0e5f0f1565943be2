"""Multi-layer perceptrons with written-out gradients, and Adam as one operation on all parameters."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn


@dataclass(frozen=True)
class Activation:
    """
    Activation function with its derivative.

    :param forward: maps the values before the activation to those after it; may work in place
    :param backward: maps the gradient after the activation, which it may overwrite, and the first argument of ``forward``
        to the gradient before it
    """

    forward: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor], th.Tensor]


def _relu_backward(grad: th.Tensor, x: th.Tensor) -> th.Tensor:
    return th.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)


def _silu_backward(grad: th.Tensor, x: th.Tensor) -> th.Tensor:
    return th.ops.aten.silu_backward.grad_input(grad, x, grad_input=grad)


# In place: the output of ReLU is positive where its input is.
RELU = Activation(th.relu_, _relu_backward)
SILU = Activation(nn.functional.silu, _silu_backward)


class FlatParameters:
    """
    Parameters as one vector, of which they become views: modules compute, save and load as before, and an operation on all
    parameters is one on the vector.

    :param parameters: parameters of one device and type
    """

    @th.no_grad()
    def __init__(self, parameters: Iterable[th.Tensor]) -> None:
        self.parameters = list(parameters)
        self.values = th.cat([parameter.detach().flatten() for parameter in self.parameters])  # (n,)
        for parameter, part in zip(self.parameters, self.views(self.values), strict=True):
            parameter.data = part

    def views(self, vector: th.Tensor) -> list[th.Tensor]:
        """Split a vector ``(n,)`` into views of the shapes of the parameters."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    @property
    def is_current(self) -> bool:
        """False if the parameters have got other memory since, as by copying or moving a module."""
        return self.parameters[0].data_ptr() == self.values.data_ptr()


FLUSH_INTERVAL = 100
"""Steps of Adam between two replacements of tiny moments by zero."""
SMALLEST_MOMENT = 1e-30
"""
First moments below are set to zero. Those of weights without gradient, behind units that are never active, decay into subnormal
numbers, with which a step takes four times as long; the steps that they contribute are far below the rounding of a weight.
"""


class FlatAdam(FlatParameters):
    """
    Parameters, gradients and moments of an Adam optimizer as one vector each, so that a step is one operation.

    For small networks, most of the time of an optimizer's step is spent on going through the parameters. The state of the
    optimizer becomes views of the vectors, and is saved and loaded as before. Build a new object when :attr:`is_current`
    says that something has replaced parameters or state.

    :param optimizer: optimizer for which :func:`is_plain_adam` holds
    """

    @th.no_grad()
    def __init__(self, optimizer: th.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups[0]["params"])
        self.optimizer = optimizer
        self.gradient = th.zeros_like(self.values)
        self._gradients = {id(p): part for p, part in zip(self.parameters, self.views(self.gradient), strict=True)}
        self._moments = {key: th.zeros_like(self.values) for key in ("exp_avg", "exp_avg_sq")}
        self._steps = th.zeros(len(self.parameters), device=self.values.device)  # one per parameter, as Adam saves them
        self._one = th.ones_like(self._steps[0])
        self._n_steps = 0
        self._owns_state = False
        if optimizer.state:
            self._take_state()

    def _take_state(self) -> None:
        """Copy the state of the optimizer into the vectors and replace it by views of them."""
        for i, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter]
            views = {"step": self._steps[i], **{key: self.views(moment)[i] for key, moment in self._moments.items()}}
            for key, view in views.items():
                if state:
                    view.copy_(state[key])
            state.update(views)
        self._owns_state = True

    @property
    def is_current(self) -> bool:
        """False if other tensors have replaced the parameters or the state of the optimizer, as loading does."""
        parameter = self.parameters[0]
        if not super().is_current or self.optimizer.param_groups[0]["params"][0] is not parameter:
            return False
        moment = self.optimizer.state[parameter].get("exp_avg") if self.optimizer.state else None
        if moment is None or not self._owns_state:
            return moment is None and not self._owns_state
        return moment.data_ptr() == self._moments["exp_avg"].data_ptr()

    def zero_grad(self) -> None:
        """Set the gradients to zero and let autograd add to :attr:`gradient`."""
        self.gradient.zero_()
        for parameter in self.parameters:
            parameter.grad = self._gradients[id(parameter)]

    def gradient_of(self, parameter: th.Tensor) -> th.Tensor:
        """Return the part of the gradient that belongs to a parameter, a view to write to."""
        return self._gradients[id(parameter)]

    def step(self) -> None:
        """Take a step along :attr:`gradient`, as ``optimizer.step()`` does."""
        group = self.optimizer.param_groups[0]
        if not self._owns_state:  # an optimizer that has made no step has no state
            self._take_state()
        self._steps.add_(self._one)
        self._n_steps += 1
        if self._n_steps % FLUSH_INTERVAL == 0:
            moment = self._moments["exp_avg"]
            moment.masked_fill_(moment.abs() < SMALLEST_MOMENT, 0.0)
        th._fused_adam_(
            [self.values],
            [self.gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._steps[0]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    Tell whether :class:`FlatAdam` computes what ``optimizer.step()`` does.

    :param optimizer: any optimizer
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    flags = ("amsgrad", "maximize", "differentiable", "capturable", "decoupled_weight_decay")
    return group["weight_decay"] == 0 and not any(group.get(flag) for flag in flags)


@dataclass
class DensePass:
    """
    Values that a pass through :class:`DenseLayers` leaves for the gradients.

    :param inputs: input of each layer, ``(batch, width)``
    :param outputs: output of each layer before its activation; overwritten by an activation that works in place
    :param result: output of the last layer, after its activation if it has one
    """

    inputs: list[th.Tensor]
    outputs: list[th.Tensor]
    result: th.Tensor

    def rows(self, n: int) -> "DensePass":
        """Keep the first ``n`` rows of the batch."""
        return DensePass([x[:n] for x in self.inputs], [x[:n] for x in self.outputs], self.result[:n])


class DenseLayers:
    r"""
    Linear layers with an activation between them, :math:`h_l = f(z_l)`, :math:`z_l = h_{l-1} W_l^\top + b_l`, without
    activation after the last.

    With :math:`g_l = \partial L / \partial z_l`, the gradients are :math:`\partial L / \partial W_l = g_l^\top h_{l-1}`,
    :math:`\partial L / \partial b_l = \sum_{batch} g_l` and :math:`g_{l-1} = (g_l W_l) \odot f'(z_{l-1})`. For matrices of a
    few hundred rows, autograd and the module system cost more than these products. The object refers to the parameters of
    the layers and copies nothing.

    :param layers: linear layers with bias
    :param optimizer: where to write gradients; None for layers that are not trained
    :param activation: activation function
    :param activate_last: apply the activation after the last layer too
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        optimizer: FlatAdam | None = None,
        activation: Activation = RELU,
        activate_last: bool = False,
    ) -> None:
        self.weights = [layer.weight.data for layer in layers]  # each (width_out, width_in)
        self.biases = [layer.bias.data for layer in layers]
        self._transposed = [weight.t() for weight in self.weights]
        self.activation = activation
        self._n_activated = len(layers) if activate_last else len(layers) - 1
        if optimizer is not None:
            self._weight_grads = [optimizer.gradient_of(layer.weight) for layer in layers]
            self._bias_grads = [optimizer.gradient_of(layer.bias) for layer in layers]

    def forward(self, x: th.Tensor) -> DensePass:
        """
        Compute all layers.

        :param x: input, ``(batch, width)``
        """
        inputs, outputs = [], []
        for i, (weight, bias) in enumerate(zip(self._transposed, self.biases, strict=True)):
            inputs.append(x)
            x = th.addmm(bias, x, weight)  # (batch, width_out)
            outputs.append(x)
            if i < self._n_activated:
                x = self.activation.forward(x)
        return DensePass(inputs, outputs, x)

    def backward(self, done: DensePass, grad: th.Tensor) -> None:
        """
        Write the gradients of all parameters to the optimizer.

        :param done: from :meth:`forward`
        :param grad: gradient of the loss in the result, ``(batch, width)``; overwritten
        """
        for i in reversed(range(len(self.weights))):
            if i < self._n_activated:
                grad = self.activation.backward(grad, done.outputs[i])  # (batch, width_out)
            th.sum(grad, dim=0, out=self._bias_grads[i])
            th.mm(grad.t(), done.inputs[i], out=self._weight_grads[i])
            if i > 0:
                grad = grad @ self.weights[i]  # (batch, width_in)

    def input_gradient(self, done: DensePass, grad: th.Tensor, first_column: int = 0) -> th.Tensor:
        """
        Compute the gradient in the input alone.

        :param done: from :meth:`forward`
        :param grad: gradient of the loss in the result, ``(batch, width)``; overwritten
        :param first_column: columns of the input before this one are left out
        :return: ``(batch, width_in - first_column)``
        """
        for i in reversed(range(len(self.weights))):
            if i < self._n_activated:
                grad = self.activation.backward(grad, done.outputs[i])  # (batch, width_out)
            grad = grad @ (self.weights[i] if i > 0 else self.weights[0][:, first_column:])
        return grad
