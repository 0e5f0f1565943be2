"""Common parts: validation, registries, spaces, running moments, returns, serialization."""
