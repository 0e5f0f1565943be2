"""Replay buffer of fine-tuning."""
