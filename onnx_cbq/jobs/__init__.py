"""A story per command, a line per stage; and the settings of a whole run, which nothing below sees."""
