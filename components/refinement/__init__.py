"""Continue a backbone's training with Gram anchoring, for better dense features."""
