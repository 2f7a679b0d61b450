"""From cases to their files and tables: what implicitmeshnet_eval.py does of each case."""
