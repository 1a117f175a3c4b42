"""Serve the champions by Triton: a candidate first, published when it reproduces its golden images."""
