"""Comparing controllers on paired worlds: metrics, intervals, tables, capacity."""
