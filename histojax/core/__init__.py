"""What every room may import: errors, atomic files, locks, retries, tables, host facts. Standard library only."""
