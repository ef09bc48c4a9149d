"""What can be asked for: every option declared once, how it is spelled, and which go together."""
