"""From a trained model to the ids of the points to label."""
