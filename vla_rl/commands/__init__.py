"""One module per command of ``vla-rl``; imported only when used."""
