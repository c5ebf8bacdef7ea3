"""The API that answers and captures feedback."""
