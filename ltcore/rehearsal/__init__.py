"""What a recipe will take, found out without its data."""
