"""Side-by-side measurements; each module prints the table that the documents quote."""
