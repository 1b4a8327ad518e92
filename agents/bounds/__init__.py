"""Upper bounds on what any controller can reach, and small cases solved exactly."""
