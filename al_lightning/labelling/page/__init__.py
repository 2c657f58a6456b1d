"""The page on which people label: a small server of one run folder, and what the browser shows."""
