"""The learning library: models, objectives, data, recipes, engine and probes. Knows nothing of orchestrators."""
