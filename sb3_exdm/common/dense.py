"""Multi-layer perceptrons with written-out gradients, and Adam as one operation on all parameters."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

from sb3_exdm.common.state import Derived


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


class FlatParameters(Derived):
    """
    Parameters as one vector, of which they become views: modules compute, save and load as before, and an operation on all
    parameters is one on the vector.

    Networks of the same shapes can be stacked: their vectors are the rows of a matrix then.

    :param groups: parameters of one device and type, one group for each of the stacked networks
    """

    @th.no_grad()
    def __init__(self, *groups: Iterable[th.Tensor]) -> None:
        self.groups = [list(group) for group in groups]
        self.shapes = [parameter.shape for parameter in self.groups[0]]
        self._index = {id(parameter): i for i, parameter in enumerate(self.groups[0])}
        rows = [th.cat([parameter.detach().flatten() for parameter in group]) for group in self.groups]
        self._rows = th.stack(rows)  # (n_networks, n)
        for group, row in zip(self.groups, self._rows, strict=True):
            for parameter, part in zip(group, self._split(row), strict=True):
                parameter.data = part

    def _split(self, values: th.Tensor) -> list[th.Tensor]:
        """Split the last axis ``(..., n)`` into views of the shapes of the parameters, ``(..., *shape)``."""
        parts = values.split([shape.numel() for shape in self.shapes], dim=-1)
        return [part.view(*values.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _of_first(self, rows: th.Tensor, parameter: th.Tensor) -> th.Tensor:
        return self._split(rows if len(rows) > 1 else rows[0])[self._index[id(parameter)]]

    @property
    def values(self) -> th.Tensor:
        """All parameters, ``(n_networks * n,)``."""
        return self._rows.view(-1)

    def value_of(self, parameter: th.Tensor) -> th.Tensor:
        """
        Return the view of a parameter.

        :param parameter: parameter of the first network
        :return: ``(*shape)``, for stacked networks ``(n_networks, *shape)``
        """
        return self._of_first(self._rows, parameter)

    @property
    def is_current(self) -> bool:
        """False if the parameters have got other memory since, as by copying or moving a module."""
        return all(group[0].data_ptr() == row.data_ptr() for group, row in zip(self.groups, self._rows, strict=True))


FLUSH_INTERVAL = 100
"""Steps of Adam between two replacements of tiny moments by zero."""
SMALLEST_MOMENT = 1e-30
"""
First moments below are set to zero. Those of weights without gradient, behind units that are never active, decay into
subnormal numbers, with which a step takes four times as long. What they contribute is far below the rounding of a weight.
"""


class FlatAdam(FlatParameters):
    """
    Parameters, gradients and moments of an Adam optimizer as one vector each, so that a step is one operation.

    For small networks, most of the time of an optimizer's step is spent on going through the parameters. The state of the
    optimizer becomes views of the vectors, and is saved and loaded as before. Build a new object when :attr:`is_current`
    says that something has replaced parameters or state.

    :param optimizers: optimizers for which :func:`is_plain_adam` holds, one for each of the stacked networks, with the same
        settings and number of steps
    """

    @th.no_grad()
    def __init__(self, *optimizers: th.optim.Optimizer) -> None:
        super().__init__(*(optimizer.param_groups[0]["params"] for optimizer in optimizers))
        self.optimizers = optimizers
        self._gradient_rows = th.zeros_like(self._rows)
        self._moments = {key: th.zeros_like(self._rows) for key in ("exp_avg", "exp_avg_sq")}
        # One number of steps per parameter, as Adam saves it.
        self._steps = th.zeros(len(optimizers), len(self.shapes), device=self._rows.device)
        self._one = th.ones((), device=self._rows.device)
        self._n_steps = 0
        self._owns_state = False
        if optimizers[0].state:
            self._take_state()

    def _take_state(self) -> None:
        """Copy the state of the optimizers into the vectors and replace it by views of them."""
        for i, (optimizer, group) in enumerate(zip(self.optimizers, self.groups, strict=True)):
            views: dict[str, Sequence[th.Tensor]] = {"step": self._steps[i].unbind()}
            views.update((key, self._split(moment[i])) for key, moment in self._moments.items())
            for j, parameter in enumerate(group):
                state = optimizer.state[parameter]
                for key, view in views.items():
                    if key in state:
                        view[j].copy_(state[key])
                    state[key] = view[j]
        self._owns_state = True
        self._n_steps = int(self._steps[0, 0].item())

    @property
    def is_current(self) -> bool:
        """False if other tensors have replaced the parameters or the state of an optimizer, as loading does."""
        if not super().is_current:
            return False
        for optimizer, group, moment in zip(self.optimizers, self.groups, self._moments["exp_avg"], strict=True):
            if optimizer.param_groups[0]["params"][0] is not group[0]:
                return False
            state = optimizer.state[group[0]] if optimizer.state else {}
            if self._owns_state != bool(state) or (state and state["exp_avg"].data_ptr() != moment.data_ptr()):
                return False
        return True

    @property
    def gradient(self) -> th.Tensor:
        """Gradient in all parameters, ``(n_networks * n,)``."""
        return self._gradient_rows.view(-1)

    def gradient_of(self, parameter: th.Tensor) -> th.Tensor:
        """
        Return the part of the gradient that belongs to a parameter, a view to write to.

        :param parameter: parameter of the first network
        :return: ``(*shape)``, for stacked networks ``(n_networks, *shape)``
        """
        return self._of_first(self._gradient_rows, parameter)

    def zero_grad(self) -> None:
        """Set the gradients to zero and let autograd add to :attr:`gradient`."""
        self._gradient_rows.zero_()
        for group, row in zip(self.groups, self._gradient_rows, strict=True):
            for parameter, part in zip(group, self._split(row), strict=True):
                parameter.grad = part

    def step(self) -> None:
        """Take a step along :attr:`gradient`, as ``optimizer.step()`` does."""
        group = self.optimizers[0].param_groups[0]
        if not self._owns_state:  # an optimizer that has made no step has no state
            self._take_state()
        self._steps.add_(self._one)
        self._n_steps += 1
        first, second = (moment.view(-1) for moment in self._moments.values())
        if self._n_steps % FLUSH_INTERVAL == 0:
            first.masked_fill_(first.abs() < SMALLEST_MOMENT, 0.0)
        th._fused_adam_(
            [self.values],
            [self.gradient],
            [first],
            [second],
            [],
            [self._steps[0, 0]],
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

    :param inputs: input of each layer, ``(..., batch, width)``
    :param outputs: output of each layer before its activation; overwritten by an activation that works in place
    :param result: output of the last layer, after its activation if it has one
    """

    inputs: list[th.Tensor]
    outputs: list[th.Tensor]
    result: th.Tensor

    def rows(self, n: int) -> "DensePass":
        """Keep the first ``n`` rows of the batch."""
        return DensePass([x[..., :n, :] for x in self.inputs], [x[..., :n, :] for x in self.outputs], self.result[..., :n, :])


class DenseLayers(Derived):
    r"""
    Linear layers with an activation between them, :math:`h_l = f(z_l)`, :math:`z_l = h_{l-1} W_l^\top + b_l`, without
    activation after the last.

    With :math:`g_l = \partial L / \partial z_l`, the gradients are :math:`\partial L / \partial W_l = g_l^\top h_{l-1}`,
    :math:`\partial L / \partial b_l = \sum_{batch} g_l` and :math:`g_{l-1} = (g_l W_l) \odot f'(z_{l-1})`. For matrices of a
    few hundred rows, autograd and the module system cost more than these products.

    All arrays have the shape ``(batch, width)``, for stacked networks ``(n_networks, batch, width)``.

    :param layers: linear layers with bias, those of the first network if they are stacked
    :param parameters: parameters of all layers; a :class:`FlatAdam` for layers that are trained, None for those of ``layers``
        as they are
    :param activation: activation function
    :param activate_last: apply the activation after the last layer too
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        parameters: FlatParameters | None = None,
        activation: Activation = RELU,
        activate_last: bool = False,
    ) -> None:
        def value(parameter: th.Tensor) -> th.Tensor:
            return parameter.data if parameters is None else parameters.value_of(parameter)

        self.weights = [value(layer.weight) for layer in layers]  # each (..., width_out, width_in)
        self._transposed = [weight.mT for weight in self.weights]
        biases = [value(layer.bias) for layer in layers]
        self._is_stacked = self.weights[0].ndim == 3
        self._biases = [bias.unsqueeze(1) for bias in biases] if self._is_stacked else biases
        self.activation = activation
        self._n_activated = len(layers) if activate_last else len(layers) - 1
        if isinstance(parameters, FlatAdam):
            self._weight_grads = [parameters.gradient_of(layer.weight) for layer in layers]
            self._bias_grads = [parameters.gradient_of(layer.bias) for layer in layers]

    def forward(self, x: th.Tensor) -> DensePass:
        """
        Compute all layers.

        :param x: input
        """
        affine = th.baddbmm if self._is_stacked else th.addmm
        inputs, outputs = [], []
        for i, (weight, bias) in enumerate(zip(self._transposed, self._biases, strict=True)):
            inputs.append(x)
            x = affine(bias, x, weight)  # (..., batch, width_out)
            outputs.append(x)
            if i < self._n_activated:
                x = self.activation.forward(x)
        return DensePass(inputs, outputs, x)

    def backward(self, done: DensePass, grad: th.Tensor) -> None:
        """
        Write the gradients of all parameters to the optimizer.

        :param done: from :meth:`forward`
        :param grad: gradient of the loss in the result; overwritten
        """
        for i in reversed(range(len(self.weights))):
            if i < self._n_activated:
                grad = self.activation.backward(grad, done.outputs[i])  # (..., batch, width_out)
            th.sum(grad, dim=-2, out=self._bias_grads[i])
            if self._is_stacked:
                self._weight_grads[i].copy_(grad.mT @ done.inputs[i])
            else:
                th.mm(grad.t(), done.inputs[i], out=self._weight_grads[i])
            if i > 0:
                grad = grad @ self.weights[i]  # (..., batch, width_in)

    def input_gradient(self, done: DensePass, grad: th.Tensor, first_column: int = 0) -> th.Tensor:
        """
        Compute the gradient in the input alone.

        :param done: from :meth:`forward`
        :param grad: gradient of the loss in the result; overwritten
        :param first_column: columns of the input before this one are left out
        :return: ``(..., batch, width_in - first_column)``
        """
        for i in reversed(range(len(self.weights))):
            if i < self._n_activated:
                grad = self.activation.backward(grad, done.outputs[i])  # (..., batch, width_out)
            grad = grad @ (self.weights[i] if i > 0 else self.weights[0][..., first_column:])
        return grad
