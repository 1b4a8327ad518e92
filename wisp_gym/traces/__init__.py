"""Readers and writers of traces: requests (when, how long) and speculation (what was drafted and accepted)."""
