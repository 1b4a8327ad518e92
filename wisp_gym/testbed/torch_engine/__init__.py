"""The target model in torch: forward pass, cache, packing."""
