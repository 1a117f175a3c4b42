"""What runs inside Triton: imports numpy, Pillow (through foundry.images) and onnxruntime, nothing else.

Every version of a model carries a copy of this package and of ``foundry`` (:mod:`serving.repository` writes it), so
that going back to an older version goes back to the code it was published with.
"""
