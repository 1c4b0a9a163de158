"""What pcjax is for: one module per figure or table, run as `python -m experiments.X`."""
