"""Backbones, projection heads and the files they are kept in. Import the module you need; this one imports nothing."""
