"""What every other package needs: validation, spaces, running moments, serialization."""
