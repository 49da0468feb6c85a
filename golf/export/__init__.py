"""From a finished run to one file that runs alone."""
