"""Everything that touches a tensor: the packed encoders, their checkpoints, the batcher and the runner."""
