"""Training, evaluation and comparison of controllers. Imports `wisp_gym`, never the reverse."""
