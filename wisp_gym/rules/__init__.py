"""Decision functions: pure functions of the contract's observations, compiled, below the engine that calls them."""
