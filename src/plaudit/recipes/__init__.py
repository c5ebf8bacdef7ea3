"""One file per recipe, read from top to bottom: the only place where configs meet algorithms."""
