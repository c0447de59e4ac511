"""What a search is and what comes of it, without Ray: space, objective, trials, a picture."""
