"""Evidence on when active learning pays: what a run and its data tell, with intervals, and nothing beyond it."""
