"""Runs for other people: a page and a model card of a run, the Hugging Face Hub, data sets of Minari."""
