"""WISP's rejection predictor: trained on recorded traces, scored on held-out prompts, exported."""
