"""Data: the sample contract, shards, sources of samples, streams of batches, and the feature cache.

Importing this loads neither torch nor webdataset.
"""

from cefam.datasets.contract import Manifest, Mask, Sample
from cefam.datasets.shards import ShardWriter, read_shard

__all__ = ["Manifest", "Mask", "Sample", "ShardWriter", "read_shard"]
