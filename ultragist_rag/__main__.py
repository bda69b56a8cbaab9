"""`python -m ultragist_rag`, for launchers that take a module."""

from ultragist_rag.cli import main

if __name__ == "__main__":
    main()
