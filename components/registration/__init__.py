"""Students become versions of registered MLflow models; the verdict moves the alias ``champion``."""
