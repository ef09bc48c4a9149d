"""What is asked: pairs of prompts, their tokens, roles and alignment, and the files that they come from."""
