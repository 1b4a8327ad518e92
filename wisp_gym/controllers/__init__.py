"""Controllers: rules and learned policies by name, for the engine and the environments (`wisp_gym.policies` for all their users)."""
