"""The protocols as the evaluation and the training loop run them: plug-ins by name, one feature pass for all."""
