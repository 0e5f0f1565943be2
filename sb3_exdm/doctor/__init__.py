"""
A check of the installation: versions, OpenGL, devices, folders, optional packages.

Nothing of the library or of a third party is imported here. What may crash is imported in processes of its own.
"""

from sb3_exdm.doctor.checks import Check, examine

__all__ = ["Check", "examine"]
