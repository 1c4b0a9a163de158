"""One module per figure or table, run as `python -m experiments.NAME`."""
