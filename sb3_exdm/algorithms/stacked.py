"""Several agents that learn side by side in one process, with one update for all of them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed

from sb3_exdm.algorithms.sac import FusedSAC, _Networks


class RandomState:
    """
    State of the global random generators of Python, NumPy and PyTorch, for one of several runs in a process. Each run draws
    the numbers that it would draw alone.

    :param seed: seed of the generators
    """

    def __init__(self, seed: int) -> None:
        outer = self._get()
        set_random_seed(seed)
        self._state = self._get()
        self._set(outer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use these generators inside the ``with`` block, and the former ones again after it."""
        outer = self._get()
        self._set(self._state)
        try:
            yield
        finally:
            self._state = self._get()
            self._set(outer)

    @staticmethod
    def _get() -> tuple[Any, Any, th.Tensor]:
        return random.getstate(), np.random.get_state(), th.get_rng_state()

    @staticmethod
    def _set(state: tuple[Any, Any, th.Tensor]) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        th.set_rng_state(state[2])


def learn_together(
    models: Sequence[FusedSAC],
    total_timesteps: int,
    callbacks: Sequence[BaseCallback],
    random_states: Sequence[RandomState],
    log_interval: int = 4,
) -> None:
    """
    Train models that differ only in their seeds, as ``model.learn`` would train each of them, to rounding.

    The networks of all models are stacked, so that the overhead of an update is shared; everything else is done in turns. The
    models share nothing but time.

    :param models: models with the same spaces and hyper-parameters, whose updates can be fused
    :param total_timesteps: environment steps of each model
    :param callbacks: callback of each model
    :param random_states: generators of each model
    :param log_interval: episodes between two logs
    :raises ValueError: for models of different sizes, or whose update cannot be fused
    """
    _check(models)
    networks = _Networks(*models)
    first = models[0]
    started = []
    for model, callback, state in zip(models, callbacks, random_states, strict=True):
        with state.active():
            _, callback = model._setup_learn(total_timesteps, callback)
            callback.on_training_start({"self": model, "total_timesteps": total_timesteps}, globals())
        started.append(callback)
    while first.num_timesteps < total_timesteps:
        goes_on = True
        minibatches: list[list[ReplayBufferSamples]] = []
        noises: list[th.Tensor] = []
        for model, callback, state in zip(models, started, random_states, strict=True):
            with state.active():
                goes_on &= _collect(model, callback, log_interval)
                if goes_on and first.num_timesteps > first.learning_starts:
                    with th.inference_mode():
                        minibatches.append(list(model._minibatches(model.gradient_steps, model.batch_size)))
                        noises.append(th.stack([model._draw_noise(model.batch_size) for _ in range(model.gradient_steps)]))
        if not goes_on:
            break
        if minibatches:
            _update(models, networks, minibatches, th.stack(noises))
    for callback, state in zip(started, random_states, strict=True):
        with state.active():
            callback.on_training_end()


def _check(models: Sequence[FusedSAC]) -> None:
    for model in models:
        if (reason := model.unsupported()) is not None:
            raise ValueError(f"Models can learn together only if their updates can be fused, but {reason}.")
        if model.gradient_steps < 1 or model.train_freq.unit.value != "step":  # type: ignore[union-attr]
            raise ValueError("Models that learn together need gradient_steps of at least 1 and train_freq in steps.")
    settings = {
        (str(model.observation_space), str(model.action_space), str(model.policy_kwargs), model.n_envs, model.batch_size)
        for model in models
    }
    if len(settings) > 1:
        raise ValueError(f"Models that learn together must have the same spaces and networks, got {sorted(settings)}.")


def _collect(model: FusedSAC, callback: BaseCallback, log_interval: int) -> bool:
    """Make one rollout; False if the callback stops the training."""
    assert model.env is not None and model.replay_buffer is not None
    rollout = model.collect_rollouts(
        model.env,
        callback,
        model.train_freq,  # type: ignore[arg-type]
        model.replay_buffer,
        model.action_noise,
        model.learning_starts,
        log_interval,
    )
    return rollout.continue_training


def _update(
    models: Sequence[FusedSAC], networks: _Networks, minibatches: list[list[ReplayBufferSamples]], noises: th.Tensor
) -> None:
    """
    Update all models.

    :param models: models
    :param networks: their networks, stacked
    :param minibatches: minibatches of each model, one for each update
    :param noises: ``(n_models, n_updates, 2 * batch, action_dim)``
    """
    for i, model in enumerate(models):
        model._update_learning_rate([flat.optimizers[i] for flat in networks.optimizers])
    losses: list[list[dict[str, th.Tensor]]] = [[] for _ in models]
    with th.inference_mode():
        for step, parts in enumerate(zip(*minibatches, strict=True)):
            samples, noise = parts[0], noises[0, step]
            if len(models) > 1:
                stacked: Any = [None if part[0] is None else th.stack(part) for part in zip(*parts, strict=True)]
                samples, noise = ReplayBufferSamples(*stacked), noises[:, step]
            loss = models[0]._update(samples, noise, networks)
            if step % models[0].target_update_interval == 0:
                networks.update_target(models[0].tau)
            for i, values in enumerate(losses):
                values.append({key: value[i] if value.ndim > 1 else value for key, value in loss.items()})
    for model, values in zip(models, losses, strict=True):
        model._log_updates(values)
