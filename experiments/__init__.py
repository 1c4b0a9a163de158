"""What pcjax is for: a module per figure or table, run with `python -m experiments.X`."""
