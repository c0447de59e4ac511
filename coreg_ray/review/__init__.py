"""The review page: a person looks at the images of `review.csv` and labels them; needs neither torch nor Ray."""
