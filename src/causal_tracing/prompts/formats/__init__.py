"""Files of pairs as others have them: a table of formats, and of each the way from its rows to a pair's fields."""
