"""What the reports of several steps are made of: HTML forms, charts without scripts, the one look of a page."""
