"""Small sample traces and their recorders; installed as `wisp_gym._traces`. README.md describes the formats."""
