"""Results as people see them: words, figures, the terminal, the page, documents and exports. Needs no torch."""
