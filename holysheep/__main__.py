"""``python -m holysheep``."""

from holysheep.cli import main

if __name__ == "__main__":
    main()
