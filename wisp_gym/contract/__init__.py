"""What a controller sees and answers: the one place for entries, units, ranges, scales and ladders. Numbers alone, nothing compiled."""
