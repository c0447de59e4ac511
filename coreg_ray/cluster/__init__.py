"""The only files that import Ray: annotation, training, search, prediction and serving on a cluster."""
