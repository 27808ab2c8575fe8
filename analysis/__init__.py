"""What a run means: offline, repeatable, from the run directory alone."""
