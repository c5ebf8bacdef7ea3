"""The web app in which people judge, and owners look. No torch: what needs a model is asked of `plaudit worker`."""
