"""Train a backbone on unlabelled images by self-distillation (DINO, iBOT, KoLeo)."""
