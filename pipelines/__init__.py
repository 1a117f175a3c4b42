"""The line as a graph over the steps: run here, planned, compiled and submitted (``python -m pipelines --help``)."""
