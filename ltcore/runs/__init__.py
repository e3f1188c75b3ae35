"""Runs that have ended: opened, rebuilt and used."""
