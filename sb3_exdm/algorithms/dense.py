"""Multi-layer perceptrons with written-out gradients, and Adam without the overhead of an optimizer's step."""

from collections.abc import Sequence

import torch as th
from torch import nn


class DenseLayers:
    r"""
    Linear layers with ReLU between them, :math:`h_l = \mathrm{relu}(h_{l-1} W_l^\top + b_l)`, without ReLU after the last.

    With :math:`g_l = \partial L / \partial (h_{l-1} W_l^\top + b_l)`, the gradients are
    :math:`\partial L / \partial W_l = g_l^\top h_{l-1}`, :math:`\partial L / \partial b_l = \sum_{batch} g_l` and
    :math:`g_{l-1} = (g_l W_l) \odot 1(h_{l-1} > 0)`. For matrices of a few hundred rows, autograd and the module system cost
    more than these products. The object refers to the parameters of the layers and copies nothing.

    :param layers: linear layers with bias
    :param relu_last: apply ReLU after the last layer too
    """

    def __init__(self, layers: Sequence[nn.Linear], relu_last: bool = False) -> None:
        self.weights: list[th.Tensor] = [layer.weight for layer in layers]  # each (width_out, width_in)
        self.biases: list[th.Tensor] = [layer.bias for layer in layers]
        self.relu_last = relu_last

    @property
    def parameters(self) -> list[th.Tensor]:
        """Weight and bias of each layer, in the order of the gradients that :meth:`backward` returns."""
        return [parameter for pair in zip(self.weights, self.biases, strict=True) for parameter in pair]

    def forward(self, x: th.Tensor) -> list[th.Tensor]:
        """
        Compute all layers.

        :param x: input, ``(batch, width)``
        :return: input of each layer and, last, the output; :meth:`backward` needs them
        """
        values = [x]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = th.addmm(bias, x, weight.t())  # (batch, width_out)
            if self.relu_last or i < len(self.weights) - 1:
                x.relu_()
            values.append(x)
        return values

    def backward(self, values: Sequence[th.Tensor], grad: th.Tensor) -> list[th.Tensor]:
        """
        Compute the gradients of all parameters.

        :param values: from :meth:`forward`
        :param grad: gradient of the loss in the output, ``(batch, width)``
        :return: gradients in the order of :attr:`parameters`
        """
        grads: list[th.Tensor] = []
        for i in reversed(range(len(self.weights))):
            if self.relu_last or i < len(self.weights) - 1:
                grad = th.ops.aten.threshold_backward(grad, values[i + 1], 0)  # (batch, width_out)
            grads += [grad.sum(dim=0), grad.t() @ values[i]]
            if i > 0:
                grad = grad @ self.weights[i]  # (batch, width_in)
        return grads[::-1]

    def input_gradient(self, values: Sequence[th.Tensor], grad: th.Tensor, first_column: int = 0) -> th.Tensor:
        """
        Compute the gradient in the input alone.

        :param values: from :meth:`forward`
        :param grad: gradient of the loss in the output, ``(batch, width)``
        :param first_column: columns of the input before this one are left out
        :return: ``(batch, width_in - first_column)``
        """
        for i in reversed(range(len(self.weights))):
            if self.relu_last or i < len(self.weights) - 1:
                grad = th.ops.aten.threshold_backward(grad, values[i + 1], 0)  # (batch, width_out)
            grad = grad @ (self.weights[i] if i > 0 else self.weights[0][:, first_column:])
        return grad


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    Tell whether :func:`adam_step` computes what ``optimizer.step()`` does.

    :param optimizer: any optimizer
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    flags = ("amsgrad", "maximize", "differentiable", "capturable", "decoupled_weight_decay")
    return group["weight_decay"] == 0 and not any(group.get(flag) for flag in flags)


def adam_step(optimizer: th.optim.Optimizer, parameters: list[th.Tensor], grads: list[th.Tensor]) -> None:
    """
    Take a step of Adam with one fused operation. The state stays that of the optimizer, so that it is saved as always.

    :param optimizer: optimizer for which :func:`is_plain_adam` holds
    :param parameters: all of its parameters
    :param grads: their gradients
    """
    states = [optimizer.state[parameter] for parameter in parameters]
    for parameter, state in zip(parameters, states, strict=True):
        if not state:
            state["step"] = th.zeros((), dtype=th.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
    group = optimizer.param_groups[0]
    steps = [state["step"] for state in states]
    th._foreach_add_(steps, 1)
    th._fused_adam_(
        parameters,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
