"""Run tasks in processes and on clusters, with checkpoints and progress files."""
