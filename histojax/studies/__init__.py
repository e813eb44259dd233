"""Studies that summarise many runs in one table: model comparison, split protocols, transfer between magnifications."""
