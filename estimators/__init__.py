"""Fits of the figures that `wisp_gym` reads: batch time, acceptance, rejection. `wisp_gym` never imports it."""
