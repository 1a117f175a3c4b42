"""The container image that runs the steps on a cluster."""

from __future__ import annotations

import os

IMAGE = os.environ.get("FOUNDRY_IMAGE") or "dino-foundry/python-steps:latest"
"""Base image of every KFP component: ``FOUNDRY_IMAGE`` when the pipeline is compiled (name it by digest). KFP wants
the word 'python' in an image name; the local runner ignores the image."""
