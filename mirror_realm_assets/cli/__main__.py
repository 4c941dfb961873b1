"""`python -m mirror_realm_assets.cli`."""

from mirror_realm_assets.cli.main import main

if __name__ == "__main__":
    main()
