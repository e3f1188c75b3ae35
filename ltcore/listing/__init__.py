"""What is installed, as text."""
