"""Which plugins are installed, and how their hooks are bound."""
