"""One script for each published number: `python -m experiments.NAME` writes experiments/results/NAME.json."""
