"""Parts that several operators share: banded, causal and weighted sums, normalisation, hashing."""
