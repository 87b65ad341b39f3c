"""The training loop and fine-tuning."""
