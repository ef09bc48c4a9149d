"""`python -m causal_tracing` is the command."""

from causal_tracing.cli.app import main

if __name__ == "__main__":
    main()
