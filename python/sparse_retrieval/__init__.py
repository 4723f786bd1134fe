"""Short signed sparse codes of dense embeddings, searched exactly from one compact file."""
