"""What people said: stored, assigned, measured. No torch in this room."""
