"""One self-contained HTML page, its tables and figures, from a run directory."""
