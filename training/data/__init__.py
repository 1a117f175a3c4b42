"""The data path: shards, order, crops, masks, batches, and labelled sets."""
