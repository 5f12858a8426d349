"""From records on disk to packed batches of token ids."""
