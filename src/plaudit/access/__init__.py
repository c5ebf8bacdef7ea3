"""Who may come in, and what they may do: accounts, roles, keys, limits and the audit log. No torch."""
