"""Output of commands: the console, tables, reports and units."""
