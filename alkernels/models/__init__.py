"""Models that strategies need: posterior draws, learned acquisition, and what trains them."""
