"""Parts of `robustness.py`: what is drawn, in which processes it is used, and the runs that are killed."""
