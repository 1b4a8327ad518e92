"""Tables of draft lengths that serving engines read: solved in the model, or from measured step times (docs/serving/tables.md)."""
