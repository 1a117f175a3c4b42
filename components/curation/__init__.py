"""Raw pool -> deduplicated, balanced, versioned shards."""
