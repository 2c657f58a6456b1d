"""BatchBALD: a batch by greedy search for the point that adds most joint information."""
