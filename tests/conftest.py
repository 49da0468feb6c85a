"""What every test has in common."""

import os

os.environ.setdefault("GOLF_CODE", "bound")  # exporting each tiny run would take longer than the run
