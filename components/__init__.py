"""The steps of the line; one folder a step, what one container runs."""
