"""What every room may import: errors, atomic files, locks, retries, tables, facts about the host. Standard library only."""
