"""The evaluation protocols: frozen features and what they are good for, one file a protocol."""
