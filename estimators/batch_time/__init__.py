"""The verification time: regressions, fits and scores on held-out configurations."""
