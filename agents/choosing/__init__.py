"""A learned choice of the whole controller, by what is known of a deployment: cases, candidates, outcomes, fit."""
