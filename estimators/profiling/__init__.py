"""Measuring batch times of models on this machine's processor or GPU."""
