"""Raw pools: a folder tree, archives, WebDataset shards, Parquet or a manifest of URLs, on any fsspec URL."""

from components.curation.pool.files import PoolFile
from components.curation.pool.opening import Pool, open_pool, pool_digest, read_pool

__all__ = ["Pool", "PoolFile", "open_pool", "pool_digest", "read_pool"]
