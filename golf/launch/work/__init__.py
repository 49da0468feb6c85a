"""The work of one job: its folder and workers, what a worker does, and commands on finished runs."""
