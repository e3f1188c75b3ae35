"""``python -m ltcore``, for launchers that start modules."""

from ltcore.cli import main

if __name__ == "__main__":
    main()
