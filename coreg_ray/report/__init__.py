"""`report.html` and `review.csv`: what a run did, and how far to trust it."""
