"""Speed and truth, shown by measurement: see README.md."""
