"""The losses of the DINO family and the teacher targets, one a file."""
