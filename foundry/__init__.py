"""The ground floor: settings, errors, progress, storage, images. Imports nothing else of the project."""

__version__ = "0.1.0"
