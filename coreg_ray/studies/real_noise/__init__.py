"""What the methods do with real noise: people's votes, zero-shot models' votes, and weak annotators who err together.

    python -m coreg_ray.studies.real_noise --study people --data DIR --output docs/results/people.jsonl

A frozen backbone looks once at every image and some views of it; then every variant trains heads on the same features.
True labels only score (and make the ceiling, `truth`). No Ray: the functions are those that a run uses.
"""
