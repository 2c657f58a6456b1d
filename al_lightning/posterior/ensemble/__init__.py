"""Deep ensembles: members trained one after the other, or read from checkpoints."""
