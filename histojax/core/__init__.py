"""What every room may import: errors, whole files, retries, facts about the host. Standard library only."""
