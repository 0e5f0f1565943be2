"""Error message for rendering without OpenGL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mujoco

NO_OPENGL = (
    "There is no OpenGL to render with: set MUJOCO_GL=egl (needs libEGL) or MUJOCO_GL=osmesa (needs libOSMesa) before Python "
    "starts, or glfw on a machine with a screen."
)


@contextmanager
def needs_opengl() -> Iterator[None]:
    """Raise an ImportError if the body of the ``with`` statement needs OpenGL and there is none."""
    try:
        yield
    except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
        raise ImportError(NO_OPENGL) from error
