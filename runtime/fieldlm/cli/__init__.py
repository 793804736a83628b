"""One file a subcommand of `fieldlm`; `main` finds it."""
