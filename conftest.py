"""Which docstrings are not tested where an extra is missing."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("dm_control") else ["envs/control/*"]
