"""WISP's published evaluation on the calibrated model: calibrated, reproduced, varied."""
