"""The run folder, on local disks and object stores alike."""
