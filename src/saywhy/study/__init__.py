"""Many runs of one config: the cells of a study, what they say together, and finished runs side by side."""
