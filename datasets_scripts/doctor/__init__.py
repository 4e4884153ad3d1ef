"""The data doctor: what is wrong with a data set, as text, JSON and a page, and a cleaned copy."""
