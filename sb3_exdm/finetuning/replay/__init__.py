"""The replay buffer of fine-tuning."""
