"""What to send: one Locust file a workload, each an example to copy."""
