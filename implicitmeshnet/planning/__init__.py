"""From a folder of labelled cases to a config: what the data are like, and what follows from it."""
