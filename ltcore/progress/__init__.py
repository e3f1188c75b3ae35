"""How a run is told of: on the console, and to logs."""
