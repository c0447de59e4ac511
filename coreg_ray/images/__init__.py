"""Where images come from: one listing of what there is, and readers for folders, tables, shards and named sets."""
