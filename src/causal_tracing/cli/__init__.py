"""The command line: texts in, words and files out; every command is a few lines around the public verbs."""
