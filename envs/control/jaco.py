"""Jaco arm: reach for a brick in one of four corners (URLB), built on dm_control's manipulation tasks."""

from __future__ import annotations

from dm_control import composer
from dm_control.composer.environment import Environment
from dm_control.entities.props import Duplo
from dm_control.manipulation import reach
from dm_control.manipulation.shared import arenas, constants, observations, robots, workspaces

TARGETS = {
    "reach_top_left": (-0.09, 0.09),
    "reach_top_right": (0.09, 0.09),
    "reach_bottom_left": (-0.09, -0.09),
    "reach_bottom_right": (0.09, -0.09),
}
"""Position of the brick for each task, m."""
BRICK_HEIGHT = 0.001
"""Height of the brick above the table at the start, to avoid contact before it settles, m."""


def make(task: str) -> Environment:
    """Make the environment of a task: a key of :data:`TARGETS`."""
    settings = observations.PERFECT_FEATURES
    target = (*TARGETS[task], BRICK_HEIGHT)
    reach_target = reach.Reach(
        arena=arenas.Standard(),
        arm=robots.make_arm(obs_settings=settings),
        hand=robots.make_hand(obs_settings=settings),
        prop=Duplo(observable_options=observations.make_options(settings, observations.FREEPROP_OBSERVABLES)),
        obs_settings=settings,
        workspace=_workspace(target),
        control_timestep=constants.CONTROL_TIMESTEP,
    )
    return composer.Environment(task=reach_target)


def _workspace(target: tuple[float, float, float]) -> object:
    """dm_control's workspace for a brick, with a single target position."""
    return reach._DUPLO_WORKSPACE._replace(target_bbox=workspaces.BoundingBox(lower=target, upper=target))
