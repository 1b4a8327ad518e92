"""A running deployment profiled, simulated from the measurements alone, and compared."""
