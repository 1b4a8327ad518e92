"""From policies and rules to bundles (extra `export`)."""
